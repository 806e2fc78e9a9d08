#include "kernels/heads.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

// Calls copy(offset in whole, offset in part, bytes) for the heads of each
// token.
template <typename Copy>
void ForEachRow(const Geometry& geometry, absl::Span<const HeadRange> heads,
                uint32_t first_layer, uint32_t last_layer, uint32_t tokens,
                const Copy& copy) {
  uint64_t whole = 0, part = 0;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    for (const bool keys : {true, false}) {
      const uint64_t head_bytes =
          uint64_t{layer.DimOf(keys)} * DTypeBytes(layer.dtype);
      const uint64_t row = heads[l].count * head_bytes;
      for (uint32_t t = 0; t < tokens; ++t) {
        copy(whole + heads[l].first * head_bytes, part, row);
        whole += layer.kv_heads * head_bytes;
        part += row;
      }
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<HeadRange>> HeadsOfRank(const Geometry& geometry,
                                                   uint32_t rank,
                                                   uint32_t ranks) {
  if (rank >= ranks)
    return absl::InvalidArgumentError(
        absl::StrCat("there is no rank ", rank, " of ", ranks));
  std::vector<HeadRange> heads;
  for (const LayerGeometry& layer : geometry.layers) {
    const uint32_t all = layer.kv_heads;
    if (all % ranks == 0) {
      heads.push_back({rank * (all / ranks), all / ranks});
    } else if (ranks % all == 0) {
      heads.push_back({rank / (ranks / all), 1});
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "layer ", heads.size(), " has ", all, " KV heads, which ", ranks,
          " ranks cannot share: one must be a multiple of the other"));
    }
  }
  return heads;
}

Geometry WithHeads(const Geometry& geometry,
                   absl::Span<const HeadRange> heads) {
  Geometry part = geometry;
  for (size_t l = 0; l < part.layers.size(); ++l)
    part.layers[l].kv_heads = heads[l].count;
  return part;
}

void TakeHeads(const Geometry& geometry, absl::Span<const HeadRange> heads,
               uint32_t first_layer, uint32_t last_layer, uint32_t tokens,
               ByteSpan whole, absl::Span<uint8_t> part) {
  ForEachRow(geometry, heads, first_layer, last_layer, tokens,
             [&](uint64_t from, uint64_t to, uint64_t bytes) {
               std::memcpy(part.data() + to, whole.data() + from, bytes);
             });
}

void PutHeads(const Geometry& geometry, absl::Span<const HeadRange> heads,
              uint32_t first_layer, uint32_t last_layer, uint32_t tokens,
              ByteSpan part, absl::Span<uint8_t> whole) {
  ForEachRow(geometry, heads, first_layer, last_layer, tokens,
             [&](uint64_t to, uint64_t from, uint64_t bytes) {
               std::memcpy(whole.data() + to, part.data() + from, bytes);
             });
}

}  // namespace latentkv
