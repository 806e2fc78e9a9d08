// Rounding that every compiler turns into vectors.
#ifndef LATENTKV_KERNELS_CPU_ROUND_H_
#define LATENTKV_KERNELS_CPU_ROUND_H_

#include <bit>
#include <cstdint>

namespace latentkv::kernels {

// To nearest, ties to even, for magnitudes up to 2^22: behind the sum with 1.5
// * 2^23 no bit is left for a fraction.
inline int32_t RoundSmall(float value) {
  constexpr float kShift = 12582912.0f;
  return std::bit_cast<int32_t>(value + kShift) -
         std::bit_cast<int32_t>(kShift);
}

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ROUND_H_
