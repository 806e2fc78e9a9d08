#include "kernels/distance.h"

#include "kernels/cpu/project_backends.h"

namespace latentkv {

float WeightedDistance(absl::Span<const float> a, absl::Span<const float> b,
                       absl::Span<const float> weight, Backend backend) {
#if defined(__x86_64__)
  if (backend != Backend::kPortable) {
    return kernels::WeightedDistanceAvx2(a.data(), b.data(), weight.data(),
                                         a.size());
  }
#endif
  (void)backend;
  return kernels::WeightedDistancePortable(a.data(), b.data(), weight.data(),
                                           a.size());
}

}  // namespace latentkv
