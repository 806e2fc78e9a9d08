#include "kernels/reconstruct.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/reconstruct_backends.h"

namespace latentkv {
namespace {

using kernels::ByteQuad;
using kernels::kGroupTokens;
using kernels::kTileWidth;
using kernels::WideQuad;

static_assert(kTileWidth == PackedDecoder::kTileChannels);
constexpr uint8_t kOffset = 128;

// What the products need of four tokens.
struct TokenGroup {
  std::vector<WideQuad> wide;
  std::vector<ByteQuad> bytes;
  int32_t bias[kGroupTokens] = {};
};

// Appends `quad` as byte quads that sum to it.
void AppendBytes(const WideQuad& quad, std::vector<ByteQuad>* bytes) {
  constexpr uint32_t kValues = 4 * kGroupTokens;
  int16_t rest[kValues];
  std::memcpy(rest, quad.latents, sizeof(rest));
  int more = 1;
  while (more != 0) {
    ByteQuad part{quad.quad, {}};
    int8_t values[kValues];
    more = 0;
    for (uint32_t i = 0; i < kValues; ++i) {
      values[i] = static_cast<int8_t>(std::clamp<int16_t>(rest[i], -128, 127));
      rest[i] = static_cast<int16_t>(rest[i] - values[i]);
      more |= rest[i];
    }
    std::memcpy(part.latents, values, sizeof(values));
    bytes->push_back(part);
  }
}

TokenGroup MakeGroup(const int16_t* latents, uint32_t stride, uint32_t tokens, uint32_t rank, bool in_bytes) {
  TokenGroup group;
  for (uint32_t t = 0; t < tokens; ++t) {
    int32_t sum = 0;
    for (uint32_t r = 0; r < rank; ++r) sum += latents[size_t{t} * stride + r];
    group.bias[t] = static_cast<int32_t>(-uint32_t{kOffset} * static_cast<uint32_t>(sum));  // Wraps, as the products do.
  }
  if (in_bytes) {
    group.bytes.reserve((rank + 3) / 4);
  } else {
    group.wide.reserve((rank + 3) / 4);
  }
  for (uint32_t r = 0; r < rank; r += 4) {
    const size_t ranks = std::min(4u, rank - r);
    WideQuad quad{r / 4, {}};
    uint64_t any = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      uint64_t four = 0;
      std::memcpy(&four, latents + size_t{t} * stride + r, ranks * sizeof(int16_t));
      std::memcpy(quad.latents[t], &four, sizeof(four));
      any |= four;
    }
    if (any == 0) continue;
    if (in_bytes) {
      AppendBytes(quad, &group.bytes);
    } else {
      group.wide.push_back(quad);
    }
  }
  return group;
}

void Multiply(const uint8_t* tile, const TokenGroup& group, Backend backend, int32_t (*sums)[kTileWidth]) {
  switch (backend) {
#if defined(__x86_64__)
    case Backend::kAvx512:
      return kernels::MultiplyAvx512(tile, group.bytes.data(), group.bytes.size(), group.bias, sums);
    case Backend::kAvx2:
      return kernels::MultiplyAvx2(tile, group.wide.data(), group.wide.size(), group.bias, sums);
#endif
    default:
      return kernels::MultiplyPortable(tile, group.wide.data(), group.wide.size(), group.bias, sums);
  }
}

}  // namespace

PackedDecoder PackDecoder(absl::Span<const int8_t> decoder, uint32_t rank, uint32_t channels) {
  PackedDecoder packed;
  packed.rank = rank;
  packed.channels = channels;
  const size_t tile_bytes = size_t{packed.Quads()} * kernels::kQuadBytes;
  packed.bytes.assign(packed.Tiles() * tile_bytes, kOffset);
  for (uint32_t r = 0; r < rank; ++r) {
    const int8_t* row = decoder.data() + size_t{r} * channels;
    uint8_t* quad = packed.bytes.data() + size_t{r / 4} * kernels::kQuadBytes + r % 4;
    for (uint32_t c = 0; c < channels; ++c) {
      quad[c / kTileWidth * tile_bytes + 4 * (c % kTileWidth)] = static_cast<uint8_t>(row[c] + kOffset);
    }
  }
  return packed;
}

void ReconstructOnto(const PackedDecoder& decoder, absl::Span<const int16_t> latents, uint32_t stride, uint32_t tokens,
                     uint32_t channels, absl::Span<int32_t> sums, Backend backend) {
  std::vector<TokenGroup> groups;
  for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
    groups.push_back(MakeGroup(latents.data() + size_t{t} * stride, stride, std::min(kGroupTokens, tokens - t),
                               decoder.rank, backend == Backend::kAvx512));
  }
  const size_t tile_bytes = size_t{decoder.Quads()} * kernels::kQuadBytes;
  // Tiles outside: one stays in the second-level cache while all tokens pass.
  for (uint32_t first = 0; first < channels; first += kTileWidth) {
    const uint8_t* tile = decoder.bytes.data() + first / kTileWidth * tile_bytes;
    const uint32_t width = std::min(kTileWidth, channels - first);
    for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
      int32_t out[kGroupTokens][kTileWidth];
      Multiply(tile, groups[t / kGroupTokens], backend, out);
      for (uint32_t i = 0; i < std::min(kGroupTokens, tokens - t); ++i) {
        int32_t* to = sums.data() + size_t{t + i} * channels + first;
        for (uint32_t c = 0; c < width; ++c) to[c] += out[i][c];
      }
    }
  }
}

void Reconstruct(const PackedDecoder& decoder, absl::Span<const int16_t> latents, uint32_t tokens,
                 absl::Span<int32_t> sums, Backend backend) {
  std::fill(sums.begin(), sums.end(), 0);
  ReconstructOnto(decoder, latents, decoder.rank, tokens, decoder.channels, sums, backend);
}

namespace {

auto DequantizeRow(Backend backend) {
  auto* row = &kernels::DequantizePortable;
#if defined(__x86_64__)
  if (backend != Backend::kPortable) row = &kernels::DequantizeAvx2;
#endif
  (void)backend;
  return row;
}

}  // namespace

void DequantizeOnto(absl::Span<const int32_t> sums, absl::Span<const float> row_scale, float step,
                    absl::Span<float> values, Backend backend) {
  auto* row = DequantizeRow(backend);
  for (size_t i = 0; i < sums.size(); i += row_scale.size()) {
    row(sums.data() + i, values.data() + i, row_scale.data(), step, row_scale.size(), values.data() + i);
  }
}

void Dequantize(absl::Span<const int32_t> sums, absl::Span<const float> mean, absl::Span<const float> row_scale,
                float step, absl::Span<float> values, Backend backend) {
  auto* row = DequantizeRow(backend);
  for (size_t i = 0; i < sums.size(); i += mean.size()) {
    row(sums.data() + i, mean.data(), row_scale.data(), step, mean.size(), values.data() + i);
  }
}

}  // namespace latentkv
