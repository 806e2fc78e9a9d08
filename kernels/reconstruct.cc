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
  WideQuad rest = quad;
  bool more = true;
  while (more) {
    ByteQuad part{quad.quad, {}};
    more = false;
    for (uint32_t t = 0; t < kGroupTokens; ++t) {
      for (uint32_t i = 0; i < 4; ++i) {
        part.latents[t][i] = std::clamp<int16_t>(rest.latents[t][i], -128, 127);
        rest.latents[t][i] -= part.latents[t][i];
        more |= rest.latents[t][i] != 0;
      }
    }
    bytes->push_back(part);
  }
}

TokenGroup MakeGroup(const int16_t* latents, uint32_t tokens, uint32_t rank, bool in_bytes) {
  TokenGroup group;
  for (uint32_t r = 0; r < rank; r += 4) {
    const size_t ranks = std::min(4u, rank - r);
    WideQuad quad{r / 4, {}};
    uint64_t any = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      uint64_t four = 0;
      std::memcpy(&four, latents + size_t{t} * rank + r, ranks * sizeof(int16_t));
      std::memcpy(quad.latents[t], &four, sizeof(four));
      any |= four;
    }
    if (any == 0) continue;
    for (uint32_t t = 0; t < tokens; ++t) {
      for (int16_t latent : quad.latents[t]) group.bias[t] -= int32_t{kOffset} * latent;
    }
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

void Reconstruct(const PackedDecoder& decoder, absl::Span<const int16_t> latents, uint32_t tokens,
                 absl::Span<int32_t> sums, Backend backend) {
  std::vector<TokenGroup> groups;
  for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
    groups.push_back(MakeGroup(latents.data() + size_t{t} * decoder.rank, std::min(kGroupTokens, tokens - t),
                               decoder.rank, backend == Backend::kAvx512));
  }
  const size_t tile_bytes = size_t{decoder.Quads()} * kernels::kQuadBytes;
  // Tiles outside: one stays in the second-level cache while all tokens pass.
  for (uint32_t tile = 0; tile < decoder.Tiles(); ++tile) {
    const uint32_t first = tile * kTileWidth;
    const size_t width = std::min(kTileWidth, decoder.channels - first);
    for (uint32_t t = 0; t < tokens; t += kGroupTokens) {
      int32_t out[kGroupTokens][kTileWidth];
      Multiply(decoder.bytes.data() + tile * tile_bytes, groups[t / kGroupTokens], backend, out);
      for (uint32_t i = 0; i < std::min(kGroupTokens, tokens - t); ++i) {
        std::memcpy(sums.data() + size_t{t + i} * decoder.channels + first, out[i], width * sizeof(int32_t));
      }
    }
  }
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
