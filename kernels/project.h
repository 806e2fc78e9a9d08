// Channels to latents, for writing: the weighted least-squares encoder of a
// decoder, and its product.
#ifndef LATENTKV_KERNELS_PROJECT_H_
#define LATENTKV_KERNELS_PROJECT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/reconstruct.h"

namespace latentkv {

// E = W D' (D W D')^-1, [channels][rank]: for every y, E' y is the z that
// minimises sum of weight * (y - D' z)^2. Kept as W^(1/2) and columns of int8,
// which is accurate enough for latents that are rounded: with SmolLM2's basis
// the error committed grows by less than 1 %.
struct Encoder {
  std::vector<float> root_weight;   // [channels]
  PackedDecoder columns;            // [channels][rank]
  std::vector<float> column_scale;  // [rank]
};

// E, [channels][rank]. `decoder` D is [rank][channels], in the units of y;
// `weight` [channels], none negative. Adds 1e-7 of the mean diagonal to D W D'
// where that is needed to factor it; InvalidArgument if even so it is not
// positive definite.
absl::StatusOr<std::vector<float>> SolveEncoder(absl::Span<const float> decoder,
                                                absl::Span<const float> weight,
                                                uint32_t rank,
                                                uint32_t channels);

// The same as it is multiplied with.
absl::StatusOr<Encoder> MakeEncoder(absl::Span<const float> decoder,
                                    absl::Span<const float> weight,
                                    uint32_t rank, uint32_t channels);

// latents [tokens][live] = the first `live` latents of values - base, both
// [tokens][channels], in units of `step`, with errors of some hundredths of it.
// Every latent of a token for which that is infinite or NaN is NaN. One thread.
void Project(const Encoder& encoder, absl::Span<const float> values,
             absl::Span<const float> base, float step, uint32_t tokens,
             uint32_t live, absl::Span<float> latents,
             Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_PROJECT_H_
