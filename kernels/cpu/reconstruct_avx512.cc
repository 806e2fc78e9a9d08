#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"

// Sums must stay in registers: at -O2 GCC would leave these loops, and the arrays in memory.
#define LATENTKV_UNROLL _Pragma("GCC unroll 4")

namespace latentkv::kernels {

void MultiplyAvx512(const uint8_t* tile, const ByteQuad* quads, size_t count, const int32_t* bias,
                    int32_t (*sums)[kTileWidth]) {
  constexpr uint32_t kVectors = kTileWidth / 16;
  __m512i sum[kGroupTokens][kVectors];
  LATENTKV_UNROLL
  for (uint32_t t = 0; t < kGroupTokens; ++t) {
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v) sum[t][v] = _mm512_set1_epi32(bias[t]);
  }
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* bytes = tile + size_t{quads[i].quad} * kQuadBytes;
    __m512i decoder[kVectors];
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v) decoder[v] = _mm512_loadu_si512(bytes + 64 * v);
    LATENTKV_UNROLL
    for (uint32_t t = 0; t < kGroupTokens; ++t) {
      int four;
      std::memcpy(&four, quads[i].latents[t], sizeof(four));
      const __m512i latents = _mm512_set1_epi32(four);
      LATENTKV_UNROLL
      for (uint32_t v = 0; v < kVectors; ++v) sum[t][v] = _mm512_dpbusd_epi32(sum[t][v], decoder[v], latents);
    }
  }
  LATENTKV_UNROLL
  for (uint32_t t = 0; t < kGroupTokens; ++t) {
    LATENTKV_UNROLL
    for (uint32_t v = 0; v < kVectors; ++v) _mm512_storeu_si512(sums[t] + 16 * v, sum[t][v]);
  }
}

}  // namespace latentkv::kernels
