#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"

// Sums must stay in registers: at -O2 GCC would leave these loops, and the
// arrays in memory.
#define LATENTKV_UNROLL _Pragma("GCC unroll 4")

namespace latentkv::kernels {

void MultiplyAvx2(const uint8_t* tile, const WideQuad* quads, size_t count,
                  const int32_t* bias, int32_t (*sums)[kTileWidth]) {
  // Eight channels at a time: a vector of 16 bits holds the quads of four, and
  // vpmaddwd leaves two sums for each.
  for (uint32_t first = 0; first < kTileWidth; first += 8) {
    __m256i low[kGroupTokens], high[kGroupTokens];
    LATENTKV_UNROLL
    for (uint32_t t = 0; t < kGroupTokens; ++t)
      low[t] = high[t] = _mm256_setzero_si256();
    for (size_t i = 0; i < count; ++i) {
      const __m128i* bytes = reinterpret_cast<const __m128i*>(
          tile + size_t{quads[i].quad} * kQuadBytes + 4 * first);
      const __m256i d0 = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes));
      const __m256i d1 = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + 1));
      LATENTKV_UNROLL
      for (uint32_t t = 0; t < kGroupTokens; ++t) {
        long long four;
        std::memcpy(&four, quads[i].latents[t], sizeof(four));
        const __m256i latents = _mm256_set1_epi64x(four);
        low[t] = _mm256_add_epi32(low[t], _mm256_madd_epi16(d0, latents));
        high[t] = _mm256_add_epi32(high[t], _mm256_madd_epi16(d1, latents));
      }
    }
    LATENTKV_UNROLL
    for (uint32_t t = 0; t < kGroupTokens; ++t) {
      const __m256i folded =
          _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[t], high[t]), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[t] + first),
                          _mm256_add_epi32(folded, _mm256_set1_epi32(bias[t])));
    }
  }
}

void DequantizeAvx2(const int32_t* sums, const float* mean,
                    const float* row_scale, float step, size_t count,
                    float* values) {
  size_t c = 0;
  for (; c + 8 <= count; c += 8) {
    const __m256 sum = _mm256_cvtepi32_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + c)));
    const __m256 scale =
        _mm256_mul_ps(_mm256_loadu_ps(row_scale + c), _mm256_set1_ps(step));
    _mm256_storeu_ps(values + c,
                     _mm256_fmadd_ps(scale, sum, _mm256_loadu_ps(mean + c)));
  }
  for (; c < count; ++c)
    values[c] =
        std::fma(row_scale[c] * step, static_cast<float>(sums[c]), mean[c]);
}

}  // namespace latentkv::kernels
