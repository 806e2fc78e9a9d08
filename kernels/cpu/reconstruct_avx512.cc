#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"

// Sums must stay in registers: at -O2 GCC would leave these loops, and the
// arrays in memory.
#define LATENTKV_UNROLL _Pragma("GCC unroll 4")

namespace latentkv::kernels {

namespace {

// `rest` holds four latents of each of four tokens.
inline void Append(__m256i rest, uint32_t quad, std::vector<ByteQuad>* quads) {
  while (!_mm256_testz_si256(rest, rest)) {
    const __m128i part = _mm256_cvtsepi16_epi8(rest);
    quads->emplace_back();
    quads->back().quad = quad;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(quads->back().latents), part);
    rest = _mm256_sub_epi16(rest, _mm256_cvtepi8_epi16(part));
  }
}

}  // namespace

void AppendQuadsAvx512(const int16_t* latents, uint32_t stride, uint32_t tokens,
                       uint32_t rank, std::vector<ByteQuad>* quads) {
  uint32_t r = 0;
  for (; tokens == kGroupTokens && r + 16 <= rank; r += 16) {
    const auto sixteen = [&](uint32_t t) {
      return _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(latents + size_t{t} * stride + r));
    };
    const __m256i a = sixteen(0), b = sixteen(1), c = sixteen(2),
                  d = sixteen(3);
    const __m256i any =
        _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
    if (_mm256_testz_si256(any, any)) continue;
    // Four by four 64-bit units turned round: what tokens have at one quad
    // comes together.
    const __m256i ab_even = _mm256_unpacklo_epi64(a, b),
                  ab_odd = _mm256_unpackhi_epi64(a, b);
    const __m256i cd_even = _mm256_unpacklo_epi64(c, d),
                  cd_odd = _mm256_unpackhi_epi64(c, d);
    Append(_mm256_permute2x128_si256(ab_even, cd_even, 0x20), r / 4, quads);
    Append(_mm256_permute2x128_si256(ab_odd, cd_odd, 0x20), r / 4 + 1, quads);
    Append(_mm256_permute2x128_si256(ab_even, cd_even, 0x31), r / 4 + 2, quads);
    Append(_mm256_permute2x128_si256(ab_odd, cd_odd, 0x31), r / 4 + 3, quads);
  }
  for (; r < rank; r += 4) {
    int64_t four[kGroupTokens] = {};
    for (uint32_t t = 0; t < tokens; ++t) {
      std::memcpy(&four[t], latents + size_t{t} * stride + r,
                  std::min(4u, rank - r) * sizeof(int16_t));
    }
    Append(_mm256_setr_epi64x(four[0], four[1], four[2], four[3]), r / 4,
           quads);
  }
}

void MultiplyAvx512(const uint8_t* tile, const ByteQuad* quads, size_t count,
                    const int32_t* bias, int32_t (*sums)[kTileWidth]) {
  constexpr uint32_t kVectors = kTileWidth / 16;
  __m512i sum[kGroupTokens][kVectors];
  LATENTKV_UNROLL
  for (uint32_t t = 0; t < kGroupTokens; ++t) {
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v)
      sum[t][v] = _mm512_set1_epi32(bias[t]);
  }
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* bytes = tile + size_t{quads[i].quad} * kQuadBytes;
    __m512i decoder[kVectors];
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v)
      decoder[v] = _mm512_loadu_si512(bytes + 64 * v);
    LATENTKV_UNROLL
    for (uint32_t t = 0; t < kGroupTokens; ++t) {
      int four;
      std::memcpy(&four, quads[i].latents[t], sizeof(four));
      const __m512i latents = _mm512_set1_epi32(four);
      LATENTKV_UNROLL
      for (uint32_t v = 0; v < kVectors; ++v)
        sum[t][v] = _mm512_dpbusd_epi32(sum[t][v], decoder[v], latents);
    }
  }
  LATENTKV_UNROLL
  for (uint32_t t = 0; t < kGroupTokens; ++t) {
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v)
      _mm512_storeu_si512(sums[t] + 16 * v, sum[t][v]);
  }
}

}  // namespace latentkv::kernels
