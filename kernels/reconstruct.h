// Latents back to channels: sparse integers times an int8 decoder, exact in integers, then one fused multiply-add.
#ifndef LATENTKV_KERNELS_RECONSTRUCT_H_
#define LATENTKV_KERNELS_RECONSTRUCT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace latentkv {

// A decoder as the kernels read it, made once by PackDecoder: tiles of kTileChannels channels; in a tile quads of
// ranks; in a quad [kTileChannels][4] bytes, each the decoder's integer plus 128. Missing ranks and channels are 128.
struct PackedDecoder {
  static constexpr uint32_t kTileChannels = 64;
  uint32_t rank = 0;
  uint32_t channels = 0;
  std::vector<uint8_t> bytes;

  uint32_t Quads() const { return (rank + 3) / 4; }
  uint32_t Tiles() const { return (channels + kTileChannels - 1) / kTileChannels; }
};

// `decoder` is [rank][channels].
PackedDecoder PackDecoder(absl::Span<const int8_t> decoder, uint32_t rank, uint32_t channels);

// sums[t][c] += sum over r of latents[t][r] * decoder[r][c], for the first `channels` channels of the decoder. `latents`
// is [tokens][stride], of which the first decoder.rank of each token count, |latent| <= 512; `sums` is
// [tokens][channels]. What is added must be in the range of int32. Ranks 4i to 4i+3 cost nothing where four tokens have
// only zeros. `backend` must be available.
void ReconstructOnto(const PackedDecoder& decoder, absl::Span<const int16_t> latents, uint32_t stride, uint32_t tokens,
                     uint32_t channels, absl::Span<int32_t> sums, Backend backend = BestBackend());

// The same onto zeros, for all channels and latents [tokens][decoder.rank].
void Reconstruct(const PackedDecoder& decoder, absl::Span<const int16_t> latents, uint32_t tokens,
                 absl::Span<int32_t> sums, Backend backend = BestBackend());

// values[t][c] = fma(row_scale[c] * step, float(sums[t][c]), values[t][c]), all in float. `row_scale` has one entry a
// channel, `sums` and `values` are [tokens][channels].
void DequantizeOnto(absl::Span<const int32_t> sums, absl::Span<const float> row_scale, float step,
                    absl::Span<float> values, Backend backend = BestBackend());

// The same onto a row of means: values[t][c] = fma(row_scale[c] * step, float(sums[t][c]), mean[c]).
void Dequantize(absl::Span<const int32_t> sums, absl::Span<const float> mean, absl::Span<const float> row_scale,
                float step, absl::Span<float> values, Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_RECONSTRUCT_H_
