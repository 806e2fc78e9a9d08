#include "kernels/cuda/product_tiles.h"

#include <array>

#include "absl/strings/str_cat.h"

namespace latentkv::cuda {
namespace {

// Chunks that lie in one tile, and the channel of each's first.
class Builder {
 public:
  explicit Builder(ProductTiles* result) : result_(*result) {}

  // All chunks until Close turn alike.
  void Open(Turn turn, uint32_t rotary) { turn_ = turn, rotary_ = rotary; }
  // The next chunk. With kTurnHalves its partner is `half` dimensions and
  // channels behind it.
  void Add(const ChunkTarget& target, int32_t channel, uint32_t half) {
    if (turn_ == kTurnHalves) {
      Put(count_, target, channel);
      ChunkTarget partner = target;
      partner.dim += half;
      Put(count_ + kChunks / 2, partner, channel + half);
    } else {
      Put(count_, target, channel);
    }
    if (++count_ == (turn_ == kTurnHalves ? kChunks / 2 : kChunks)) Close();
  }
  void Close() {
    if (count_ == 0) return;
    tile_.turn = turn_;
    tile_.rotary = rotary_;
    result_.tiles.push_back(tile_);
    for (uint32_t n = 0; n < kTileChannels; ++n) {
      const uint32_t i = n / 8, k = n % 8 / 2, e = n % 2;
      result_.channels.push_back(ChannelOf(i, k, e));
    }
    for (uint32_t i = 0; i < 8; ++i) {
      for (uint32_t k = 0; k < 4; ++k) {
        for (uint32_t c = 0; c < 4; ++c)
          result_.factors.push_back(ChannelOf(2 * i + c / 2, k, c % 2));
      }
    }
    tile_ = Empty();
    channels_.fill(-1);
    count_ = 0;
  }

 private:
  static ProductTile Empty() {
    ProductTile tile = {};
    for (ChunkTarget& chunk : tile.chunks) chunk.part = -1;
    return tile;
  }
  void Put(uint32_t chunk, const ChunkTarget& target, int32_t channel) {
    tile_.chunks[chunk] = target;
    channels_[chunk] = channel;
  }
  // Column 8 i + 2 k + e of a tile: a thread holds those of one k, which are
  // four chunks.
  int32_t ChannelOf(uint32_t i, uint32_t k, uint32_t e) const {
    const int32_t channel = channels_[i / 4 * 4 + k];
    return channel < 0 ? -1 : channel + static_cast<int32_t>(i % 4 * 2 + e);
  }

  ProductTiles& result_;
  ProductTile tile_ = Empty();
  std::array<int32_t, kChunks> channels_ = [] {
    std::array<int32_t, kChunks> none;
    none.fill(-1);
    return none;
  }();
  Turn turn_ = kTurnNone;
  uint32_t rotary_ = 0, count_ = 0;
};

absl::Status CheckLayer(const LayerGeometry& layer, uint32_t index) {
  const uint32_t turned = layer.pairing == RotaryPairing::kHalves
                              ? layer.rotary_dim / 2
                              : layer.rotary_dim;
  if (layer.head_dim % kChunkChannels == 0 &&
      layer.DimOf(false) % kChunkChannels == 0 &&
      (layer.pairing == RotaryPairing::kNone || turned % kChunkChannels == 0)) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("layer ", index, " has heads of ", layer.head_dim, " and ",
                   layer.DimOf(false), " of which ", layer.rotary_dim,
                   " rotate: not restored on a device"));
}

}  // namespace

absl::StatusOr<ProductTiles> MakeProductTiles(
    const Geometry& geometry, uint32_t first_layer, uint32_t last_layer,
    const std::vector<uint32_t>& rotary_of_layer,
    absl::Span<const HeadRange> heads) {
  ProductTiles result;
  Builder builder(&result);
  int32_t channel = 0;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    if (absl::Status status = CheckLayer(layer, l); !status.ok()) return status;
    const bool halves = layer.pairing == RotaryPairing::kHalves;
    const uint32_t rotary_dim =
        layer.pairing == RotaryPairing::kNone ? 0 : layer.rotary_dim;
    const uint32_t half = rotary_dim / 2;
    const HeadRange held =
        heads.empty() ? HeadRange{0, layer.kv_heads} : heads[l];
    for (const bool values : {false, true}) {
      const uint32_t dims = layer.DimOf(!values);
      // Dimensions [first, last) of the heads.
      const auto add = [&](uint32_t first, uint32_t last) {
        for (uint32_t head = 0; head < held.count; ++head) {
          for (uint32_t dim = first; dim < last; dim += kChunkChannels) {
            const ChunkTarget target = {static_cast<int32_t>(2 * l + values),
                                        static_cast<uint16_t>(head),
                                        static_cast<uint16_t>(dim),
                                        halves ? dim : dim / 2};
            builder.Add(target,
                        channel + static_cast<int32_t>(
                                      (held.first + head) * dims + dim),
                        half);
          }
        }
        builder.Close();
      };
      if (!values && rotary_dim > 0) {
        builder.Open(halves ? kTurnHalves : kTurnNeighbours,
                     rotary_of_layer[l]);
        add(0, halves ? half : rotary_dim);
      }
      builder.Open(kTurnNone, 0);
      add(values ? 0 : rotary_dim, dims);
      channel += layer.ChannelsOf(!values);
    }
  }
  return result;
}

}  // namespace latentkv::cuda
