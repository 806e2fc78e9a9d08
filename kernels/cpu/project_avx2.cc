#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "kernels/cpu/project_backends.h"
#include "kernels/cpu/round.h"

namespace latentkv::kernels {

float WeighAvx2(const float* values, const float* base,
                const float* root_weight, size_t count, float* weighted) {
  __m256i largest = _mm256_setzero_si256();
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  size_t c = 0;
  for (; c + 8 <= count; c += 8) {
    const __m256 left =
        _mm256_sub_ps(_mm256_loadu_ps(values + c), _mm256_loadu_ps(base + c));
    const __m256 product =
        _mm256_mul_ps(left, _mm256_loadu_ps(root_weight + c));
    _mm256_storeu_ps(weighted + c, product);
    largest = _mm256_max_epi32(
        largest, _mm256_and_si256(_mm256_castps_si256(product), magnitude));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  int32_t bits = *std::max_element(lanes, lanes + 8);
  for (; c < count; ++c) {
    weighted[c] = (values[c] - base[c]) * root_weight[c];
    bits = std::max(bits, std::bit_cast<int32_t>(weighted[c]) & 0x7fffffff);
  }
  return std::bit_cast<float>(bits);
}

void RoundAvx2(const float* weighted, float factor, size_t count,
               int16_t* whole) {
  const __m256 factors = _mm256_set1_ps(factor);
  size_t c = 0;
  for (; c + 16 <= count; c += 16) {
    const __m256i low = _mm256_cvtps_epi32(
        _mm256_mul_ps(_mm256_loadu_ps(weighted + c), factors));
    const __m256i high = _mm256_cvtps_epi32(
        _mm256_mul_ps(_mm256_loadu_ps(weighted + c + 8), factors));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(whole + c),
        _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
  }
  for (; c < count; ++c)
    whole[c] = static_cast<int16_t>(RoundSmall(weighted[c] * factor));
}

float WeightedDistanceAvx2(const float* a, const float* b, const float* weight,
                           size_t count) {
  static_assert(kDistanceLanes == 16);
  const auto term = [&](size_t c) {
    const __m256 difference =
        _mm256_sub_ps(_mm256_loadu_ps(a + c), _mm256_loadu_ps(b + c));
    return _mm256_mul_ps(_mm256_loadu_ps(weight + c),
                         _mm256_mul_ps(difference, difference));
  };
  __m256 low = _mm256_setzero_ps(), high = low;
  size_t c = 0;
  for (; c + kDistanceLanes <= count; c += kDistanceLanes) {
    low = _mm256_add_ps(low, term(c));
    high = _mm256_add_ps(high, term(c + 8));
  }
  alignas(32) float sums[kDistanceLanes];
  _mm256_store_ps(sums, low);
  _mm256_store_ps(sums + 8, high);
  for (; c < count; ++c) {
    const float difference = a[c] - b[c];
    sums[c % kDistanceLanes] += weight[c] * (difference * difference);
  }
  for (size_t half = kDistanceLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

}  // namespace latentkv::kernels
