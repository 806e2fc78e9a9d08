// Frames in the basis of a synthetic model, and what they should state.
#ifndef LATENTKV_TESTS_CODEC_BASIS_FRAMES_H_
#define LATENTKV_TESTS_CODEC_BASIS_FRAMES_H_

#include <cstddef>
#include <cstdint>

#include "codec/codec.h"
#include "core/bytes.h"
#include "tests/codec/synthetic.h"

namespace latentkv {

EncodeOptions AtStep(float step, float loss_own_max = 0);

// The frame of a block; empty, and the test fails, if there is none.
Bytes Encoded(const SyntheticModel& model, const BlockPlace& place,
              const Bytes& raw, const EncodeOptions& options);

// Of section `index`, whose first eight bytes end in their count.
double EscapeBytes(const Bytes& frame, size_t index);

// What the loss of a frame is of its error (docs/formats/basis.md): the power
// 3/2 of the bits of its latents over those that their scales make expect.
double SurpriseOf(const SyntheticModel& model, const Bytes& frame);

// The error: the divergence that the sensitivities expect of what `restored`
// differs from `raw` by, nats a token.
double ErrorOf(const SyntheticModel& model, uint32_t first_token,
               const Bytes& raw, const Bytes& restored);

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CODEC_BASIS_FRAMES_H_
