// How far two rows are apart, under weights.
#ifndef LATENTKV_KERNELS_DISTANCE_H_
#define LATENTKV_KERNELS_DISTANCE_H_

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace latentkv {

// The sum over c of weight[c] * (a[c] - b[c])^2, in floats and one order for
// every backend. All have one length.
float WeightedDistance(absl::Span<const float> a, absl::Span<const float> b,
                       absl::Span<const float> weight,
                       Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_DISTANCE_H_
