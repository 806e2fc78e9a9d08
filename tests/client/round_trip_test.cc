// Pages out and in again, through the real daemon.
#include <cmath>

#include "core/limits.h"
#include "tests/client/client_fixture.h"

namespace latentkv {
namespace {

class RoundTripTest : public ClientTest {};

TEST_F(RoundTripTest, EveryLayoutAndPageSizeGetsTheBitsOfEveryOther) {
  ASSERT_TRUE(StoreSequence(7, 256, Values::kAnyBits));
  for (Layout layout : kLayouts) {
    for (uint32_t page_tokens : {16, 32, 64, 128, 48}) {
      const uint64_t page_count = 256 / page_tokens + 3;
      TestPages pages(geometry_, layout, page_tokens, page_count);
      std::unique_ptr<Client> client = Open(&pages);
      EXPECT_EQ(Match(client.get(), 7, 300), 256u);
      const TransferResult result = Load(client.get(), pages, 7, 0, 256);
      EXPECT_EQ(result.token_count, 256u);
      EXPECT_EQ(result.exact_blocks, 4u);
      TestPages expected(geometry_, layout, page_tokens, page_count);
      expected.Compute(7, expected.PageIds(256, 7), 0, 256, Values::kAnyBits);
      EXPECT_TRUE(pages.memory() == expected.memory())
          << static_cast<int>(layout) << " " << page_tokens;
    }
  }
}

TEST_F(RoundTripTest, EveryLayoutCanBeStoredFrom) {
  uint64_t seed = 20;
  for (Layout layout : kLayouts) {
    for (uint32_t page_tokens : {32, 128}) {
      TestPages pages(geometry_, layout, page_tokens, 10);
      std::unique_ptr<Client> client = Open(&pages);
      ++seed;
      pages.Compute(seed, pages.PageIds(256, seed), 0, 256);
      const std::vector<uint32_t> tokens = TestTokens(seed, 256);
      ASSERT_TRUE(
          client->Store({tokens}, 0, 256, pages.PageIds(256, seed)).ok());
      ASSERT_TRUE(client->Flush(kLong).ok());
      EXPECT_EQ(client->Stats().stored_blocks, 4u);
      pages.Poison();
      EXPECT_EQ(Load(client.get(), pages, seed, 0, 256).token_count, 256u);
      EXPECT_TRUE(pages.memory() ==
                  Expected(layout, page_tokens, 10, seed, 0, 256).memory());
    }
  }
}

TEST_F(RoundTripTest, PagesMayChangeAsSoonAsStoreReturns) {
  TestPages pages(geometry_, Layout::kEngineCpu, 128, 8);
  std::unique_ptr<Client> client = Open(&pages);
  const std::vector<uint64_t> ids = pages.PageIds(1024, 3);
  pages.Compute(3, ids, 0, 1024);
  const std::vector<uint32_t> tokens = TestTokens(3, 1024);
  auto job = client->Store({tokens}, 0, 1024, ids);
  pages.Poison();
  ASSERT_TRUE(job.ok());
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 1024u);
  EXPECT_EQ(Load(client.get(), pages, 3, 0, 1024).token_count, 1024u);
  EXPECT_TRUE(pages.memory() ==
              Expected(Layout::kEngineCpu, 128, 8, 3, 0, 1024).memory());
}

TEST_F(RoundTripTest, MatchEndsWhereThePromptsPart) {
  ASSERT_TRUE(StoreSequence(7, 320));
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 1);
  std::unique_ptr<Client> client = Open(&pages);
  std::vector<uint32_t> tokens = TestTokens(7, 320);
  tokens[200] ^= 1;
  EXPECT_EQ(*client->Match({tokens}, absl::Seconds(1), Soon()), 192u);
  tokens[0] ^= 1;
  EXPECT_EQ(*client->Match({tokens}, absl::Seconds(1), Soon()), 0u);
  EXPECT_EQ(Match(client.get(), 7, 63), 0u);
  const ClientStats stats = client->Stats();
  EXPECT_EQ(stats.lookups, 3u);
  EXPECT_EQ(stats.hit_tokens, 192u);
}

TEST_F(RoundTripTest, LoadFromTheMiddleLeavesWhatLiesBefore) {
  ASSERT_TRUE(StoreSequence(7, 320));
  TestPages pages(geometry_, Layout::kEngineCpu, 32, 12);
  std::unique_ptr<Client> client = Open(&pages);
  EXPECT_EQ(Load(client.get(), pages, 7, 128, 128).token_count, 128u);
  TestPages expected(geometry_, Layout::kEngineCpu, 32, 12);
  expected.Compute(7, expected.PageIds(256, 7), 128, 256);
  EXPECT_TRUE(pages.memory() == expected.memory());
}

TEST_F(RoundTripTest, LoadOfMoreThanIsStoredGivesWhatThereIs) {
  ASSERT_TRUE(StoreSequence(7, 128));
  TestPages pages(geometry_, Layout::kHeadsFirst, 32, 8);
  std::unique_ptr<Client> client = Open(&pages);
  EXPECT_EQ(Load(client.get(), pages, 7, 0, 256).token_count, 128u);
  EXPECT_EQ(client->Stats().load_failures, 2u);
  EXPECT_EQ(client->Stats().loaded_tokens, 128u);
}

TEST_F(RoundTripTest, StoreTakesWholeBlocksAndContinuesChains) {
  TestPages pages(geometry_, Layout::kTokensFirst, 16, 20);
  std::unique_ptr<Client> client = Open(&pages);
  const std::vector<uint64_t> ids = pages.PageIds(300, 5);
  pages.Compute(5, ids, 0, 300);
  const std::vector<uint32_t> tokens = TestTokens(5, 300);
  EXPECT_EQ(
      (*(*client->Store({tokens}, 0, 150, ids))->Wait(-1, kLong)).token_count,
      128u);
  EXPECT_EQ(
      (*(*client->Store({tokens}, 128, 172, ids))->Wait(-1, kLong)).token_count,
      128u);
  EXPECT_EQ(
      (*(*client->Store({tokens}, 100, 20, ids))->Wait(-1, kLong)).token_count,
      0u);
  EXPECT_EQ(Match(client.get(), 5, 300), 256u);
}

TEST_F(RoundTripTest, ExtraAndSaltKeepPromptsApart) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 2);
  std::unique_ptr<Client> client = Open(&pages);
  pages.Compute(5, {0, 1}, 0, 128);
  const std::vector<uint32_t> tokens = TestTokens(5, 128);
  const std::vector<BlockExtra> image = {{1, {1, 2, 3}}},
                                other = {{1, {1, 2, 4}}};
  ASSERT_TRUE(client->Store({tokens, image, "a"}, 0, 128, {0, 1}).ok());
  ASSERT_TRUE(client->Flush(kLong).ok());
  EXPECT_EQ(*client->Match({tokens, image, "a"}, absl::ZeroDuration(), Soon()),
            128u);
  EXPECT_EQ(*client->Match({tokens, other, "a"}, absl::ZeroDuration(), Soon()),
            64u);
  EXPECT_EQ(*client->Match({tokens, image, "b"}, absl::ZeroDuration(), Soon()),
            0u);
  EXPECT_EQ(*client->Match({tokens, image}, absl::ZeroDuration(), Soon()), 0u);
}

TEST_F(RoundTripTest, SessionsComeBackAsTheyWerePut) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 1);
  std::unique_ptr<Client> client = Open(&pages);
  const std::string record("a\0b\xff", 4);
  ASSERT_TRUE(client->PutSession("talk", AsBytes(record), Soon()).ok());
  EXPECT_EQ(*client->GetSession("talk", Soon()), record);
  ASSERT_TRUE(client->DeleteSession("talk", Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(client->GetSession("talk", Soon()).status()));
}

// The basis.

float LargestError(const TestPages& restored, const TestPages& computed,
                   const std::vector<uint64_t>& ids, const Geometry& geometry,
                   uint64_t first, uint64_t last) {
  float largest = 0;
  for (uint32_t l = 0; l < geometry.layers.size(); ++l) {
    for (uint64_t t = first; t < last; ++t) {
      for (bool key : {true, false}) {
        const uint32_t dims = geometry.layers[l].DimOf(key);
        for (uint32_t c = 0; c < geometry.layers[l].ChannelsOf(key); ++c) {
          const uint32_t head = c / dims, dim = c % dims;
          const float a = restored.Value(l, key, ids, t, head, dim),
                      b = computed.Value(l, key, ids, t, head, dim);
          largest =
              std::max(largest, std::isfinite(a) ? std::abs(a - b) : INFINITY);
        }
      }
    }
  }
  return largest;
}

TEST_F(RoundTripTest, BasisRestoresWithinItsStep) {
  TestPages pages(geometry_, Layout::kEngineCpu, 32, 8);
  std::unique_ptr<Client> client = Open(
      TestConfig(daemon_.Connect(), geometry_, PlainBasis(geometry_)), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 9);
  pages.Compute(9, ids, 0, 256);
  const TestPages computed = pages;
  const std::vector<uint32_t> tokens = TestTokens(9, 256);
  const TransferResult stored =
      *(*client->Store({tokens}, 0, 256, ids))->Wait(-1, kLong);
  EXPECT_EQ(stored.token_count, 256u);
  pages.Poison();
  const TransferResult loaded = Load(client.get(), pages, 9, 0, 256);
  EXPECT_EQ(loaded.token_count, 256u);
  EXPECT_EQ(loaded.exact_blocks, 0u);
  EXPECT_EQ(loaded.frame_bytes, stored.frame_bytes);
  EXPECT_EQ(client->Stats().guarded_blocks, 0u);
  EXPECT_GT(loaded.loss_chain, 0);
  EXPECT_EQ(loaded.loss_chain, stored.loss_chain);
  // Half a step, twice for a rotated pair, and the rounding of bf16 at
  // magnitudes up to 4.
  const float error = LargestError(pages, computed, ids, geometry_, 0, 256);
  EXPECT_LT(error, 0.0625f * 0.71f + 0.016f);
  EXPECT_GT(error, 0);
}

// Wired as an engine's client is. At a step that coarse the basis holds nothing
// within its bound.
TEST_F(RoundTripTest, WhatTheGuardWroteWithoutTheBasisIsReadWithIt) {
  absl::StatusOr<ClientConfig> config =
      MakeClientConfig(OptionsWith(*PlainBasis(geometry_, 0, 400)));
  ASSERT_TRUE(config.ok()) << config.status();
  config->write.loss_own_max = 0.005f;
  TestPages pages(geometry_, Layout::kEngineCpu, 32, 8);
  std::unique_ptr<Client> client = Open(*std::move(config), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 9);
  pages.Compute(9, ids, 0, 256);
  const TestPages computed = pages;
  EXPECT_EQ((*client->Store({TestTokens(9, 256)}, 0, 256, ids))
                ->Wait(-1, kLong)
                ->token_count,
            256u);
  pages.Poison();
  const TransferResult loaded = Load(client.get(), pages, 9, 0, 256);
  EXPECT_EQ(loaded.token_count, 256u);
  EXPECT_EQ(loaded.exact_blocks, 0u);
  EXPECT_GT(loaded.loss_chain, 0);
  EXPECT_LE(loaded.loss_chain, 4 * 0.005f);
  EXPECT_EQ(client->Stats().guarded_blocks, 4u);
  const float error = LargestError(pages, computed, ids, geometry_, 0, 256);
  EXPECT_GT(error, 0);
  EXPECT_LT(error, 0.5f);
}

// Multi-head latent attention as vLLM keeps it: values and keys of different
// dimensions, in one tensor.
TEST_F(RoundTripTest, LatentsOfOneTensorAreRestoredAtEveryProfile) {
  const Geometry geometry = SmallGeometry(3, 1, 8, 24);
  TestPages pages(geometry, Layout::kLatents, 32, 8);
  // The pages' memory as it was computed; pages hold what was restored of it.
  const auto computed = [&](ClientConfig config, uint64_t seed, Values values) {
    const std::vector<uint64_t> ids = pages.PageIds(256, seed);
    pages.Poison();
    pages.Compute(seed, ids, 0, 256, values);
    TestPages before = pages;
    std::unique_ptr<Client> client = Open(std::move(config), &pages);
    EXPECT_EQ((*client->Store({TestTokens(seed, 256)}, 0, 256, ids))
                  ->Wait(-1, kLong)
                  ->token_count,
              256u);
    pages.Poison();
    EXPECT_EQ(Load(client.get(), pages, seed, 0, 256).token_count, 256u);
    return before;
  };
  const auto error = [&](const TestPages& before, uint64_t seed) {
    return LargestError(pages, before, pages.PageIds(256, seed), geometry, 0,
                        256);
  };
  EXPECT_TRUE(
      computed(TestConfig(daemon_.Connect(), geometry), 9, Values::kAnyBits)
          .memory() == pages.memory());

  ClientConfig uncalibrated = TestConfig(daemon_.Connect(), geometry);
  uncalibrated.write = {false, 0.42f, 0, 0};
  uncalibrated.read = {{ScalarQuantizer()}, 1e9};
  TestPages before = computed(std::move(uncalibrated), 10, Values::kSmooth);
  EXPECT_GT(error(before, 10), 0);
  EXPECT_LT(error(before, 10), 0.5f);

  ClientConfig in_basis =
      TestConfig(daemon_.Connect(), geometry, PlainBasis(geometry));
  before = computed(std::move(in_basis), 11, Values::kSmooth);
  EXPECT_GT(error(before, 11), 0);
  EXPECT_LT(error(before, 11), 0.0625f * 0.71f + 0.016f);
}

TEST_F(RoundTripTest, BlocksBehindRestoredOnesInheritTheirLoss) {
  const auto basis = PlainBasis(geometry_);
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 6);
  const std::vector<uint64_t> ids = pages.PageIds(384, 9);
  const std::vector<uint32_t> tokens = TestTokens(9, 384);
  pages.Compute(9, ids, 0, 384);
  double first_loss = 0;
  {
    std::unique_ptr<Client> client =
        Open(TestConfig(daemon_.Connect(), geometry_, basis), &pages);
    auto stored = (*client->Store({tokens}, 0, 256, ids))->Wait(-1, kLong);
    first_loss = stored->loss_chain;
    // Computed on what was computed, not on what was stored.
    stored = (*client->Store({tokens}, 256, 64, ids))->Wait(-1, kLong);
    EXPECT_LT(stored->loss_chain, 1.5 * first_loss);
  }
  std::unique_ptr<Client> client =
      Open(TestConfig(daemon_.Connect(), geometry_, basis), &pages);
  EXPECT_EQ(Load(client.get(), pages, 9, 0, 256).token_count, 256u);
  const TransferResult behind =
      *(*client->Store({tokens}, 320, 64, ids))->Wait(-1, kLong);
  EXPECT_GT(behind.loss_chain, 1.5 * first_loss);

  ClientConfig strict = TestConfig(daemon_.Connect(), geometry_, basis);
  strict.read.loss_chain_max = 1.5 * first_loss;
  EXPECT_EQ(Match(Open(std::move(strict), &pages).get(), 9, 384), 320u);
  EXPECT_EQ(Match(client.get(), 9, 384), 384u);
}

TEST_F(RoundTripTest, ReaderAtExactTakesExactAloneAndOneWithABasisBoth) {
  const auto basis = PlainBasis(geometry_);
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> lossy =
      Open(TestConfig(daemon_.Connect(), geometry_, basis), &pages);
  std::unique_ptr<Client> exact =
      Open(TestConfig(daemon_.Connect(), geometry_), &pages);
  pages.Compute(1, pages.PageIds(128, 1), 0, 128);
  ASSERT_TRUE(
      lossy->Store({TestTokens(1, 128)}, 0, 128, pages.PageIds(128, 1)).ok());
  ASSERT_TRUE(lossy->Flush(kLong).ok());
  ASSERT_TRUE(StoreSequence(2, 128));
  EXPECT_EQ(Match(lossy.get(), 1, 128), 128u);
  EXPECT_EQ(Match(exact.get(), 1, 128), 0u);
  EXPECT_EQ(Match(lossy.get(), 2, 128), 128u);
  EXPECT_EQ(Load(lossy.get(), pages, 2, 0, 128).exact_blocks, 2u);
}

}  // namespace
}  // namespace latentkv
