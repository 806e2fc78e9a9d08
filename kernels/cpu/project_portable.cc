#include <algorithm>
#include <bit>

#include "kernels/cpu/project_backends.h"
#include "kernels/cpu/round.h"

namespace latentkv::kernels {

float WeighPortable(const float* values, const float* base,
                    const float* root_weight, size_t count, float* weighted) {
  // As integers magnitudes have the same order, and NaN lies above infinity: a
  // loop that becomes vectors.
  int32_t bits = 0;
  for (size_t c = 0; c < count; ++c) {
    weighted[c] = (values[c] - base[c]) * root_weight[c];
    bits = std::max(bits, std::bit_cast<int32_t>(weighted[c]) & 0x7fffffff);
  }
  return std::bit_cast<float>(bits);
}

void RoundPortable(const float* weighted, float factor, size_t count,
                   int16_t* whole) {
  for (size_t c = 0; c < count; ++c)
    whole[c] = static_cast<int16_t>(RoundSmall(weighted[c] * factor));
}

float WeightedDistancePortable(const float* a, const float* b,
                               const float* weight, size_t count) {
  float sums[kDistanceLanes] = {};
  for (size_t first = 0; first < count; first += kDistanceLanes) {
    const size_t lanes = std::min(kDistanceLanes, count - first);
    for (size_t i = 0; i < lanes; ++i) {
      const float difference = a[first + i] - b[first + i];
      sums[i] += weight[first + i] * (difference * difference);
    }
  }
  for (size_t half = kDistanceLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace latentkv::kernels
