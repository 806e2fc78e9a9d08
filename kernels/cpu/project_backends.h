// The loops over channels behind kernels/project.h and kernels/distance.h, one
// a backend: AVX-512 machines use the AVX2 ones, which memory already limits.
#ifndef LATENTKV_KERNELS_CPU_PROJECT_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_PROJECT_BACKENDS_H_

#include <cstddef>
#include <cstdint>

namespace latentkv::kernels {

// weighted[c] = (values[c] - base[c]) * root_weight[c]. Returns the largest
// magnitude; NaN or infinite if one is not finite.
float WeighPortable(const float* values, const float* base,
                    const float* root_weight, size_t count, float* weighted);
float WeighAvx2(const float* values, const float* base,
                const float* root_weight, size_t count, float* weighted);

// whole[c] = weighted[c] * factor to nearest, ties to even. Products are finite
// and below 2^15.
void RoundPortable(const float* weighted, float factor, size_t count,
                   int16_t* whole);
void RoundAvx2(const float* weighted, float factor, size_t count,
               int16_t* whole);

// WeightedDistance: the term of index c is added to sum c % kDistanceLanes;
// then the upper half of the sums to the lower, until one is left.
inline constexpr size_t kDistanceLanes = 16;
float WeightedDistancePortable(const float* a, const float* b,
                               const float* weight, size_t count);
float WeightedDistanceAvx2(const float* a, const float* b, const float* weight,
                           size_t count);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_PROJECT_BACKENDS_H_
