#include "kernels/heads.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/pages.h"

namespace latentkv {
namespace {

// Layers of 8 heads of 3, of 2 heads of 5 and of 1 head of 4 with values of 6.
Geometry Mixed() {
  Geometry geometry;
  for (const auto& [heads, dims] : {std::pair{8, 3}, {2, 5}, {1, 4}}) {
    LayerGeometry layer;
    layer.kv_heads = heads;
    layer.head_dim = dims;
    geometry.layers.push_back(layer);
  }
  geometry.layers[2].value_dim = 6;
  return geometry;
}

TEST(Heads, AreSharedInOrderAndReplicatedWhereThereAreFewerThanRanks) {
  const std::vector<HeadRange> first = {{0, 2}, {0, 1}, {0, 1}},
                               last = {{6, 2}, {1, 1}, {0, 1}};
  EXPECT_EQ(HeadsOfRank(Mixed(), 0, 4).value(), first);
  EXPECT_EQ(HeadsOfRank(Mixed(), 3, 4).value(), last);
  const std::vector<HeadRange> all = {{0, 8}, {0, 2}, {0, 1}};
  EXPECT_EQ(HeadsOfRank(Mixed(), 0, 1).value(), all);
}

TEST(Heads, ThatCannotBeSharedAreRefusedByName) {
  const absl::Status status = HeadsOfRank(Mixed(), 0, 3).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(status.message().find("layer 0 has 8 KV heads, which 3 ranks"),
            absl::string_view::npos)
      << status;
  EXPECT_TRUE(absl::IsInvalidArgument(HeadsOfRank(Mixed(), 4, 4).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(HeadsOfRank(Mixed(), 0, 0).status()));
}

TEST(Heads, PartsOfAllRanksMakeTheWholeAgain) {
  const Geometry geometry = Mixed();
  constexpr uint32_t kTokens = 5, kFirst = 1, kLast = 3;
  for (const auto& [first, last] : {std::pair{0u, 3u}, {kFirst, kLast}}) {
    Bytes whole(RawBytes(geometry, first, last, kTokens));
    std::iota(whole.begin(), whole.end(), uint8_t{1});
    for (uint32_t ranks : {1, 2, 4, 8}) {
      Bytes again(whole.size(), 0);
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        const std::vector<HeadRange> heads =
            HeadsOfRank(geometry, rank, ranks).value();
        Bytes part(RawBytes(WithHeads(geometry, heads), first, last, kTokens),
                   0);
        TakeHeads(geometry, heads, first, last, kTokens, whole,
                  absl::MakeSpan(part));
        PutHeads(geometry, heads, first, last, kTokens, part,
                 absl::MakeSpan(again));
      }
      EXPECT_EQ(again, whole) << ranks;
    }
  }
}

// The definition, element by element: [K, V][tokens][heads][dims].
TEST(Heads, PartIsTheRawFormOfPagesThatHoldThem) {
  const Geometry geometry = Mixed();
  constexpr uint32_t kTokens = 2;
  Bytes whole(RawBytes(geometry, 1, 2, kTokens));
  std::iota(whole.begin(), whole.end(), uint8_t{0});
  const std::vector<HeadRange> heads = HeadsOfRank(geometry, 1, 2).value();
  Bytes part(whole.size() / 2);
  TakeHeads(geometry, heads, 1, 2, kTokens, whole, absl::MakeSpan(part));
  for (uint32_t t = 0; t < 2 * kTokens; ++t) {
    for (uint32_t byte = 0; byte < 10; ++byte)
      EXPECT_EQ(part[t * 10 + byte], whole[t * 20 + 10 + byte]);
  }
}

}  // namespace
}  // namespace latentkv
