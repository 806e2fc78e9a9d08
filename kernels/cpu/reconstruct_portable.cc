#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"

namespace latentkv::kernels {

void AppendQuads(const int16_t* latents, uint32_t stride, uint32_t tokens,
                 uint32_t rank, std::vector<WideQuad>* quads) {
  for (uint32_t r = 0; r < rank; r += 4) {
    WideQuad quad{r / 4, {}};
    uint64_t any = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      uint64_t four = 0;
      std::memcpy(&four, latents + size_t{t} * stride + r,
                  std::min(4u, rank - r) * sizeof(int16_t));
      std::memcpy(quad.latents[t], &four, sizeof(four));
      any |= four;
    }
    if (any != 0) quads->push_back(quad);
  }
}

void MultiplyPortable(const uint8_t* tile, const WideQuad* quads, size_t count,
                      const int32_t* bias, int32_t (*sums)[kTileWidth]) {
  for (uint32_t t = 0; t < kGroupTokens; ++t) {
    uint32_t row[kTileWidth];  // Unsigned: wraps.
    for (uint32_t& sum : row) sum = static_cast<uint32_t>(bias[t]);
    for (size_t i = 0; i < count; ++i) {
      const uint8_t* bytes = tile + size_t{quads[i].quad} * kQuadBytes;
      const int32_t a = quads[i].latents[t][0], b = quads[i].latents[t][1];
      const int32_t c = quads[i].latents[t][2], d = quads[i].latents[t][3];
      if ((a | b | c | d) == 0) continue;
      for (uint32_t x = 0; x < kTileWidth; ++x, bytes += 4) {
        row[x] += static_cast<uint32_t>(a * bytes[0] + b * bytes[1] +
                                        c * bytes[2] + d * bytes[3]);
      }
    }
    for (uint32_t x = 0; x < kTileWidth; ++x)
      sums[t][x] = static_cast<int32_t>(row[x]);
  }
}

void DequantizePortable(const int32_t* sums, const float* mean,
                        const float* row_scale, float step, size_t count,
                        float* values) {
  for (size_t c = 0; c < count; ++c)
    values[c] =
        std::fma(row_scale[c] * step, static_cast<float>(sums[c]), mean[c]);
}

}  // namespace latentkv::kernels
