// Channels to latents, for writing: the weighted least-squares encoder of a decoder, and its product.
#ifndef LATENTKV_KERNELS_PROJECT_H_
#define LATENTKV_KERNELS_PROJECT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace latentkv {

// E = W D' (D W D')^-1, [channels][rank]: for every y, E' y is the z that minimises sum of weight * (y - D' z)^2.
// `decoder` D is [rank][channels], in the units of y; `weight` [channels], none negative. Adds 1e-7 of the mean
// diagonal to D W D' where that is needed to factor it; InvalidArgument if even so it is not positive definite.
absl::StatusOr<std::vector<float>> MakeEncoder(absl::Span<const float> decoder, absl::Span<const float> weight,
                                               uint32_t rank, uint32_t channels);

// latents [tokens][live] = values [tokens][channels] * the first `live` columns of encoder [channels][rank]. One thread.
void Project(absl::Span<const float> values, absl::Span<const float> encoder, uint32_t tokens, uint32_t live,
             uint32_t rank, uint32_t channels, absl::Span<float> latents);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_PROJECT_H_
