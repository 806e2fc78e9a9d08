// Latents back to channels: sparse integers times an int8 decoder, exact in
// integers, then one fused multiply-add.
#ifndef LATENTKV_KERNELS_RECONSTRUCT_H_
#define LATENTKV_KERNELS_RECONSTRUCT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace latentkv {

// A decoder as the kernels read it, made once by PackDecoder: tiles of
// kTileChannels channels; in a tile quads of ranks; in a quad
// [kTileChannels][4] bytes, each the decoder's integer plus 128. Missing ranks
// and channels are 128.
struct PackedDecoder {
  static constexpr uint32_t kTileChannels = 64;
  uint32_t rank = 0;
  uint32_t channels = 0;
  std::vector<uint8_t> bytes;

  uint32_t Quads() const { return (rank + 3) / 4; }
  uint32_t Tiles() const {
    return (channels + kTileChannels - 1) / kTileChannels;
  }
};

// `decoder` is [rank][channels].
PackedDecoder PackDecoder(absl::Span<const int8_t> decoder, uint32_t rank,
                          uint32_t channels);

// sums[t][c] = sum over r of latents[t][r] * decoder[r][c], for the first
// `channels` channels of the decoder. `latents` is [tokens][stride], of which
// the first decoder.rank of each token count, |latent| <= 512; `sums` is
// [tokens][channels]. Sums must be in the range of int32. Ranks 4i to 4i+3 cost
// nothing where four tokens have only zeros. `backend` must be available.
void Reconstruct(const PackedDecoder& decoder,
                 absl::Span<const int16_t> latents, uint32_t stride,
                 uint32_t tokens, uint32_t channels, absl::Span<int32_t> sums,
                 Backend backend = BestBackend());

// The same sums for all channels C, as values[t][c] = fma(scale[c] * step,
// float(sums[t][c]), base[t][c]), all in float. `scale` is [C], `values`
// [tokens][C]; `base` is [C], one row for all tokens, or [tokens][C], and then
// may be `values`.
void Restore(const PackedDecoder& decoder, absl::Span<const int16_t> latents,
             uint32_t stride, uint32_t tokens, absl::Span<const float> scale,
             float step, absl::Span<const float> base, absl::Span<float> values,
             Backend backend = BestBackend());

// For each token WeightedDistance(values, what Restore makes onto `base`), both
// [tokens][C], under `weight`, [C]. With 1024 channels and more it is estimated
// from an eighth of them, others for every four tokens: over 32 tokens each
// channel counts equally.
std::vector<float> RestoredDistances(
    const PackedDecoder& decoder, absl::Span<const int16_t> latents,
    uint32_t stride, uint32_t tokens, absl::Span<const float> scale, float step,
    absl::Span<const float> base, absl::Span<const float> values,
    absl::Span<const float> weight, Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_RECONSTRUCT_H_
