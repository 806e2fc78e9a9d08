#include "kernels/reconstruct.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"
#include "kernels/distance.h"

namespace latentkv {
namespace {

using kernels::ByteQuad;
using kernels::kGroupTokens;
using kernels::kTileWidth;
using kernels::WideQuad;

static_assert(kTileWidth == PackedDecoder::kTileChannels);
constexpr uint8_t kOffset = 128;

// A distance is that of an eighth of the tiles, of all in turn over the tokens,
// where there are enough of them: it is known within some percent, and the
// whole product would take a sixth of encoding.
constexpr uint32_t kDistanceSampling = 8,
                   kSampledTilesMin = 2 * kDistanceSampling;

// What the products need of four tokens.
struct TokenGroup {
  std::vector<WideQuad> wide;
  std::vector<ByteQuad> bytes;
  int32_t bias[kGroupTokens] = {};
};

TokenGroup MakeGroup(const int16_t* latents, uint32_t stride, uint32_t tokens,
                     uint32_t rank, Backend backend) {
  TokenGroup group;
  for (uint32_t t = 0; t < tokens; ++t) {
    int32_t sum = 0;
    for (uint32_t r = 0; r < rank; ++r) sum += latents[size_t{t} * stride + r];
    // Wraps, as the products do.
    group.bias[t] =
        static_cast<int32_t>(-uint32_t{kOffset} * static_cast<uint32_t>(sum));
  }
#if defined(__x86_64__)
  if (backend == Backend::kAvx512) {
    group.bytes.reserve((rank + 3) / 4);
    kernels::AppendQuadsAvx512(latents, stride, tokens, rank, &group.bytes);
    return group;
  }
#endif
  (void)backend;
  group.wide.reserve((rank + 3) / 4);
  kernels::AppendQuads(latents, stride, tokens, rank, &group.wide);
  return group;
}

void Multiply(const uint8_t* tile, const TokenGroup& group, Backend backend,
              int32_t (*sums)[kTileWidth]) {
  switch (backend) {
#if defined(__x86_64__)
    case Backend::kAvx512:
      return kernels::MultiplyAvx512(tile, group.bytes.data(),
                                     group.bytes.size(), group.bias, sums);
    case Backend::kAvx2:
      return kernels::MultiplyAvx2(tile, group.wide.data(), group.wide.size(),
                                   group.bias, sums);
#endif
    default:
      return kernels::MultiplyPortable(tile, group.wide.data(),
                                       group.wide.size(), group.bias, sums);
  }
}

auto DequantizeOf(Backend backend) {
  auto* row = &kernels::DequantizePortable;
#if defined(__x86_64__)
  if (backend != Backend::kPortable) row = &kernels::DequantizeAvx2;
#endif
  (void)backend;
  return row;
}

// Calls visit(token, first channel, width, sums) for each token and each tile
// of the first `channels` channels, where tile + token / kGroupTokens is a
// multiple of `sampling`.
template <typename Visit>
void ForEachProduct(const PackedDecoder& decoder,
                    absl::Span<const int16_t> latents, uint32_t stride,
                    uint32_t tokens, uint32_t channels, uint32_t sampling,
                    Backend backend, Visit visit) {
  std::vector<TokenGroup> groups;
  for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
    groups.push_back(MakeGroup(latents.data() + size_t{t} * stride, stride,
                               std::min(kGroupTokens, tokens - t), decoder.rank,
                               backend));
  }
  const size_t tile_bytes = size_t{decoder.Quads()} * kernels::kQuadBytes;
  // Tiles outside: one stays in the second-level cache while all tokens pass.
  for (uint32_t first = 0; first < channels; first += kTileWidth) {
    const uint8_t* tile =
        decoder.bytes.data() + first / kTileWidth * tile_bytes;
    const uint32_t width = std::min(kTileWidth, channels - first);
    for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
      if ((first / kTileWidth + t / kGroupTokens) % sampling != 0) continue;
      int32_t sums[kGroupTokens][kTileWidth];
      Multiply(tile, groups[t / kGroupTokens], backend, sums);
      for (uint32_t i = 0; i < std::min(kGroupTokens, tokens - t); ++i)
        visit(t + i, first, width, sums[i]);
    }
  }
}

}  // namespace

PackedDecoder PackDecoder(absl::Span<const int8_t> decoder, uint32_t rank,
                          uint32_t channels) {
  PackedDecoder packed;
  packed.rank = rank;
  packed.channels = channels;
  const size_t tile_bytes = size_t{packed.Quads()} * kernels::kQuadBytes;
  packed.bytes.assign(packed.Tiles() * tile_bytes, kOffset);
  for (uint32_t r = 0; r < rank; ++r) {
    const int8_t* row = decoder.data() + size_t{r} * channels;
    uint8_t* quad =
        packed.bytes.data() + size_t{r / 4} * kernels::kQuadBytes + r % 4;
    for (uint32_t c = 0; c < channels; ++c) {
      quad[c / kTileWidth * tile_bytes + 4 * (c % kTileWidth)] =
          static_cast<uint8_t>(row[c] + kOffset);
    }
  }
  return packed;
}

void Reconstruct(const PackedDecoder& decoder,
                 absl::Span<const int16_t> latents, uint32_t stride,
                 uint32_t tokens, uint32_t channels, absl::Span<int32_t> sums,
                 Backend backend) {
  ForEachProduct(
      decoder, latents, stride, tokens, channels, 1, backend,
      [&](uint32_t t, uint32_t first, uint32_t width, const int32_t* products) {
        std::copy_n(products, width,
                    sums.data() + size_t{t} * channels + first);
      });
}

void Restore(const PackedDecoder& decoder, absl::Span<const int16_t> latents,
             uint32_t stride, uint32_t tokens, absl::Span<const float> scale,
             float step, absl::Span<const float> base, absl::Span<float> values,
             Backend backend) {
  auto* dequantize = DequantizeOf(backend);
  const size_t base_stride =
      base.size() == decoder.channels ? 0 : decoder.channels;
  ForEachProduct(
      decoder, latents, stride, tokens, decoder.channels, 1, backend,
      [&](uint32_t t, uint32_t first, uint32_t width, const int32_t* products) {
        dequantize(products, base.data() + t * base_stride + first,
                   scale.data() + first, step, width,
                   values.data() + size_t{t} * decoder.channels + first);
      });
}

std::vector<float> RestoredDistances(
    const PackedDecoder& decoder, absl::Span<const int16_t> latents,
    uint32_t stride, uint32_t tokens, absl::Span<const float> scale, float step,
    absl::Span<const float> base, absl::Span<const float> values,
    absl::Span<const float> weight, Backend backend) {
  auto* dequantize = DequantizeOf(backend);
  const uint32_t sampling =
      decoder.Tiles() < kSampledTilesMin ? 1 : kDistanceSampling;
  std::vector<float> distances(tokens);
  ForEachProduct(
      decoder, latents, stride, tokens, decoder.channels, sampling, backend,
      [&](uint32_t t, uint32_t first, uint32_t width, const int32_t* products) {
        float restored[kTileWidth];
        const size_t at = size_t{t} * decoder.channels + first;
        dequantize(products, base.data() + at, scale.data() + first, step,
                   width, restored);
        distances[t] +=
            WeightedDistance(values.subspan(at, width), {restored, width},
                             weight.subspan(first, width), backend);
      });
  for (float& distance : distances) distance *= static_cast<float>(sampling);
  return distances;
}

}  // namespace latentkv
