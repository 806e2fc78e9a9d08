// The static models under which latents are entropy-coded: one distribution a
// class of scale over step, made from integers so that every machine makes the
// same (docs/formats/entropy.md).
#ifndef LATENTKV_CODEC_LATENT_MODEL_H_
#define LATENTKV_CODEC_LATENT_MODEL_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

// Class of a latent whose mean magnitude is `scale` at `step`: quarters of an
// octave of their ratio, from 2^-6 to 2^9.75, to the nearest and clamped.
uint32_t LatentClass(float scale, float step);

// How many leading latents are worth coding at `step`: those of class
// kLiveClass and above. `scales` descend.
uint32_t LiveRank(absl::Span<const float> scales, float step);

// Laplace distributions of each class's mean magnitude, rounded to whole
// numbers.
LatentTables MakeLatentTables();

}  // namespace latentkv

#endif  // LATENTKV_CODEC_LATENT_MODEL_H_
