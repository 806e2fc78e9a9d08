// Which channel of the basis each place in the pages is made from. Needs no
// device.
#include "kernels/cuda/product_tiles.h"

#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "kernels/heads.h"

namespace latentkv::cuda {
namespace {

// (part, head, dim) of the pages: the channel.
using Channels = std::map<std::tuple<int32_t, uint32_t, uint32_t>, int32_t>;

Channels ChannelsOf(const ProductTiles& tiles) {
  Channels channels;
  for (size_t t = 0; t < tiles.tiles.size(); ++t) {
    for (uint32_t n = 0; n < kTileChannels; ++n) {
      // product_tiles.cc: column 8 i + 2 k + e of a tile.
      const uint32_t i = n / 8, k = n % 8 / 2, e = n % 2;
      const ChunkTarget& target = tiles.tiles[t].chunks[i / 4 * 4 + k];
      const int32_t channel = tiles.channels[t * kTileChannels + n];
      EXPECT_EQ(target.part < 0, channel < 0);
      if (target.part < 0) continue;
      EXPECT_TRUE(channels
                      .emplace(std::tuple(target.part, target.head,
                                          target.dim + i % 4 * 2 + e),
                               channel)
                      .second);
    }
  }
  return channels;
}

Geometry TwoLayers(uint32_t heads, uint32_t dims, uint32_t rotary_dim,
                   RotaryPairing pairing) {
  LayerGeometry layer;
  layer.kv_heads = heads;
  layer.head_dim = dims;
  layer.rotary_dim = rotary_dim;
  layer.pairing = pairing;
  return {{layer, layer}};
}

TEST(ProductTiles, OfARankAreThoseOfItsHeadsWhateverTheirSize) {
  for (const auto& [dims, rotary_dim, pairing] :
       {std::tuple{64u, 64u, RotaryPairing::kHalves},
        {96u, 96u, RotaryPairing::kHalves},
        {128u, 128u, RotaryPairing::kHalves},
        {256u, 256u, RotaryPairing::kHalves},
        {80u, 32u, RotaryPairing::kHalves},
        {64u, 32u, RotaryPairing::kNeighbours},
        {64u, 0u, RotaryPairing::kNone}}) {
    const Geometry geometry = TwoLayers(4, dims, rotary_dim, pairing);
    const Channels whole =
        ChannelsOf(MakeProductTiles(geometry, 0, 2, {0, 0}).value());
    ASSERT_EQ(whole.size(), 2 * 2 * 4 * dims);
    for (uint32_t ranks : {2, 4}) {
      size_t placed = 0;
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const std::vector<HeadRange> heads =
            HeadsOfRank(geometry, rank, ranks).value();
        const Channels own =
            ChannelsOf(MakeProductTiles(geometry, 0, 2, {0, 0}, heads).value());
        for (const auto& [place, channel] : own) {
          const auto [part, head, dim] = place;
          EXPECT_EQ(channel, whole.at({part, heads[0].first + head, dim}));
        }
        placed += own.size();
      }
      EXPECT_EQ(placed, whole.size()) << dims << " " << ranks;
    }
  }
}

// A rank computes its share: where heads fill tiles, there are as many fewer.
TEST(ProductTiles, OfARankAreAsManyFewer) {
  const Geometry geometry = TwoLayers(8, 128, 128, RotaryPairing::kHalves);
  const size_t whole = MakeProductTiles(geometry, 0, 2, {0, 0})->tiles.size();
  const std::vector<HeadRange> heads = HeadsOfRank(geometry, 3, 4).value();
  EXPECT_EQ(MakeProductTiles(geometry, 0, 2, {0, 0}, heads)->tiles.size() * 4,
            whole);
}

}  // namespace
}  // namespace latentkv::cuda
