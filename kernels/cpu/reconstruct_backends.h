// The products behind Reconstruct: one tile of channels, four tokens, at a
// time.
#ifndef LATENTKV_KERNELS_CPU_RECONSTRUCT_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_RECONSTRUCT_BACKENDS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace latentkv::kernels {

inline constexpr uint32_t kGroupTokens = 4;
inline constexpr uint32_t kTileWidth = 64;  // PackedDecoder::kTileChannels
inline constexpr uint32_t kQuadBytes = 4 * kTileWidth;

// The latents of four tokens at one quad of ranks, not all zero.
struct WideQuad {
  uint32_t quad;
  int16_t latents[kGroupTokens][4];
};
// The same in bytes. A latent beyond a byte is the sum of several of these with
// the same quad.
struct ByteQuad {
  uint32_t quad;
  int8_t latents[kGroupTokens][4];
};

// Appends, for `tokens` tokens of [tokens][stride], the quads of their first
// `rank` latents that are not all zero.
void AppendQuads(const int16_t* latents, uint32_t stride, uint32_t tokens,
                 uint32_t rank, std::vector<WideQuad>* quads);
void AppendQuadsAvx512(const int16_t* latents, uint32_t stride, uint32_t tokens,
                       uint32_t rank, std::vector<ByteQuad>* quads);

// sums[token][channel] = bias[token] + the products of `quads` with the tile,
// whose bytes are the decoder plus 128: the caller's bias takes the 128 out
// again. Wraps modulo 2^32, so partial sums may leave int32.
void MultiplyPortable(const uint8_t* tile, const WideQuad* quads, size_t count,
                      const int32_t* bias, int32_t (*sums)[kTileWidth]);
void MultiplyAvx2(const uint8_t* tile, const WideQuad* quads, size_t count,
                  const int32_t* bias, int32_t (*sums)[kTileWidth]);
void MultiplyAvx512(const uint8_t* tile, const ByteQuad* quads, size_t count,
                    const int32_t* bias, int32_t (*sums)[kTileWidth]);

// One row: values[c] = fma(row_scale[c] * step, float(sums[c]), mean[c]).
void DequantizePortable(const int32_t* sums, const float* mean,
                        const float* row_scale, float step, size_t count,
                        float* values);
void DequantizeAvx2(const int32_t* sums, const float* mean,
                    const float* row_scale, float step, size_t count,
                    float* values);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_RECONSTRUCT_BACKENDS_H_
