#include "kernels/pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace latentkv {
namespace {

using ::testing::ElementsAre;

MATCHER_P3(IsRun, page, offset, count, "") {
  return arg.page == page && arg.offset == offset && arg.count == count;
}

LayerGeometry Layer(uint32_t heads, uint32_t dim, DType dtype) {
  LayerGeometry layer;
  layer.kv_heads = heads;
  layer.head_dim = dim;
  layer.dtype = dtype;
  return layer;
}

// Where the tokens, heads and dimensions of a page lie, as the order of the
// axes from the outermost.
PageStrides Strides(const std::string& order, const LayerGeometry& layer,
                    uint32_t page_tokens) {
  PageStrides strides;
  int64_t step = DTypeBytes(layer.dtype);
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    if (*axis == 't') strides.token = step, step *= page_tokens;
    if (*axis == 'h') strides.head = step, step *= layer.kv_heads;
    if (*axis == 'd') strides.dim = step, step *= layer.head_dim;
  }
  strides.page = step;
  return strides;
}

TEST(RunsOfTokens, CutsASequenceAtItsPages) {
  std::vector<TokenRun> runs;
  ASSERT_TRUE(RunsOfTokens({7, 2, 5}, 16, 8, 10, 30, &runs).ok());
  EXPECT_THAT(runs, ElementsAre(IsRun(7u, 10u, 6u), IsRun(2u, 0u, 16u),
                                IsRun(5u, 0u, 8u)));
}

TEST(RunsOfTokens, RefusesTokensBehindTheLastPageAndPagesOutsideTheCache) {
  std::vector<TokenRun> runs;
  EXPECT_TRUE(RunsOfTokens({0, 1}, 16, 8, 0, 32, &runs).ok());
  EXPECT_EQ(RunsOfTokens({0, 1}, 16, 8, 0, 33, &runs).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RunsOfTokens({0, 1}, 16, 8, 0xffffffff, 64, &runs).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RunsOfTokens({0, 8}, 16, 8, 0, 32, &runs).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(runs.empty());
  EXPECT_EQ(RunsOfTokens({0}, 0, 8, 0, 1, &runs).code(),
            absl::StatusCode::kInvalidArgument);
}

struct Case {
  std::string key_order, value_order;
  DType dtype;
  uint32_t heads, dim, page_tokens;
};

class Layouts : public ::testing::TestWithParam<Case> {};

TEST_P(Layouts, GatherAndScatterFollowTheStrides) {
  const Case& c = GetParam();
  Geometry geometry;
  geometry.layers = {Layer(c.heads, c.dim, c.dtype),
                     Layer(c.heads + 1, c.dim, c.dtype)};
  std::vector<std::vector<uint8_t>> memory;
  PagedCache pages;
  pages.page_tokens = c.page_tokens;
  pages.page_count = 9;
  std::mt19937 random(3);
  for (const LayerGeometry& layer : geometry.layers) {
    PagedLayer paged;
    paged.key_strides = Strides(c.key_order, layer, c.page_tokens);
    paged.value_strides = Strides(c.value_order, layer, c.page_tokens);
    for (int i = 0; i < 2; ++i) {
      memory.emplace_back(paged.key_strides.page * pages.page_count);
      for (uint8_t& byte : memory.back()) byte = random();
    }
    paged.key = memory[memory.size() - 2].data();
    paged.value = memory.back().data();
    pages.layers.push_back(paged);
  }
  std::vector<uint64_t> ids(8);
  std::iota(ids.begin(), ids.end(), 1);
  std::shuffle(ids.begin(), ids.end(), random);
  std::vector<TokenRun> runs;
  ASSERT_TRUE(RunsOfTokens(ids, c.page_tokens, 9, 3, 64, &runs).ok());

  Bytes raw(RawBytes(geometry, 64));
  GatherRaw(geometry, pages, runs, absl::MakeSpan(raw));
  const uint32_t element = DTypeBytes(c.dtype);
  size_t at = 0;
  for (size_t l = 0; l < geometry.layers.size(); ++l) {
    for (int kind = 0; kind < 2; ++kind) {
      const PageStrides& s = kind == 0 ? pages.layers[l].key_strides
                                       : pages.layers[l].value_strides;
      for (uint32_t t = 3; t < 67; ++t) {
        for (uint32_t h = 0; h < geometry.layers[l].kv_heads; ++h) {
          for (uint32_t d = 0; d < c.dim; ++d, at += element) {
            const uint8_t* expected =
                memory[2 * l + kind].data() + ids[t / c.page_tokens] * s.page +
                t % c.page_tokens * s.token + h * s.head + d * s.dim;
            ASSERT_EQ(std::memcmp(raw.data() + at, expected, element), 0)
                << l << kind << " " << t << " " << h;
          }
        }
      }
    }
  }
  EXPECT_EQ(at, raw.size());

  // Scatter restores exactly those elements: the rest of the memory keeps its
  // bytes.
  const auto before = memory;
  for (uint8_t& byte : raw) byte ^= 0x5a;
  ScatterRaw(geometry, 0, 2, raw, pages, runs);
  size_t changed = 0, bytes = 0;
  for (size_t i = 0; i < memory.size(); ++i) {
    for (size_t j = 0; j < memory[i].size(); ++j, ++bytes)
      changed += memory[i][j] != before[i][j];
  }
  EXPECT_EQ(changed, raw.size());
  EXPECT_LT(changed, bytes);
  Bytes again(raw.size());
  GatherRaw(geometry, pages, runs, absl::MakeSpan(again));
  EXPECT_EQ(again, raw);
  const size_t first_layer = RawBytes({{geometry.layers[0]}}, 64);
  for (size_t i = first_layer; i < raw.size(); ++i) raw[i] ^= 0xff;
  ScatterRaw(geometry, 1, 2, ByteSpan(raw).subspan(first_layer), pages, runs);
  GatherRaw(geometry, pages, runs, absl::MakeSpan(again));
  EXPECT_EQ(again, raw) << "one layer alone";
}

INSTANTIATE_TEST_SUITE_P(
    OfEngines, Layouts,
    // NHD
    ::testing::Values(Case{"thd", "thd", DType::kBf16, 3, 64, 16},
                      // HND
                      Case{"htd", "htd", DType::kBf16, 3, 64, 16},
                      // vLLM on the CPU
                      Case{"hdt", "htd", DType::kBf16, 3, 64, 128},
                      // tiles cut short
                      Case{"hdt", "hdt", DType::kFp16, 2, 20, 24},
                      Case{"dht", "dth", DType::kBf16, 5, 12, 11},
                      Case{"hdt", "tdh", DType::kFp32, 2, 9, 32},
                      Case{"hdt", "thd", DType::kFp8E4M3, 4, 16, 64}));

}  // namespace
}  // namespace latentkv
