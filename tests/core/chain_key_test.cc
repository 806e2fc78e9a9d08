#include "core/chain_key.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/limits.h"

namespace latentkv {
namespace {

ChainScope Scope() {
  return {"tenant", Sha256({AsBytes("model")}), Digest{}, "salt"};
}

std::vector<uint32_t> Tokens(size_t count) {
  std::vector<uint32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 1);
  return tokens;
}

// The golden values of docs/formats/chain-key.md, which
// tests/python/test_keys.py computes a second way.
TEST(ChainKey, HasTheGoldenValues) {
  EXPECT_EQ(ChainRoot(Scope()).Hex(),
            "8cf1eafa9d37551d9ab314b96fd7e65ebc1856e0f33c092948590b74c9d81358");
  const std::vector<Digest> keys = *ChainKeys(Scope(), Tokens(130));
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0].Hex(),
            "b4f7fe28e1752b1452c66298c8c0590a9a5a79e9634040e66255c077001ab39a");
  EXPECT_EQ(keys[1].Hex(),
            "3367f6b2442ffba09015594ecb824033f9ab7ef10a9cc4967a7cdfdbbb2d3b72");
  const std::vector<BlockExtra> extras = {{1, {0xca, 0xfe}}};
  EXPECT_EQ((*ChainKeys(Scope(), Tokens(130), extras))[1].Hex(),
            "69d8083be04895e1d46c9a86d8ea4429b0d152445db3914ad3880eb64d98189a");
}

TEST(ChainKey, DependsOnEveryPartOfTheScope) {
  const Digest root = ChainRoot(Scope());
  ChainScope other = Scope();
  other.tenant = "tenan";
  other.salt = "tsalt";  // The same letters in a row.
  EXPECT_NE(ChainRoot(other), root);
  other = Scope();
  other.model = Digest{};
  EXPECT_NE(ChainRoot(other), root);
  other = Scope();
  other.adapter = Scope().model;
  EXPECT_NE(ChainRoot(other), root);
}

TEST(ChainKey, AKeyNamesEverythingBeforeIt) {
  std::vector<uint32_t> tokens = Tokens(192);
  const std::vector<Digest> keys = *ChainKeys(Scope(), tokens);
  tokens[63] += 1;
  const std::vector<Digest> changed = *ChainKeys(Scope(), tokens);
  for (int block = 0; block < 3; ++block)
    EXPECT_NE(keys[block], changed[block]);
  tokens[63] -= 1;
  tokens[64] += 1;
  EXPECT_EQ((*ChainKeys(Scope(), tokens))[0], keys[0]);
  EXPECT_NE((*ChainKeys(Scope(), tokens))[1], keys[1]);
}

TEST(ChainKey, AnExtraChangesItsBlockAndThoseBehind) {
  const std::vector<Digest> keys = *ChainKeys(Scope(), Tokens(192));
  const std::vector<BlockExtra> extras = {{1, {1}}};
  const std::vector<Digest> changed = *ChainKeys(Scope(), Tokens(192), extras);
  EXPECT_EQ(changed[0], keys[0]);
  EXPECT_NE(changed[1], keys[1]);
  EXPECT_NE(changed[2], keys[2]);
}

TEST(ChainKey, RefusesExtrasOutOfOrderOrTooLarge) {
  const std::vector<BlockExtra> twice = {{1, {1}}, {1, {2}}};
  EXPECT_EQ(ChainKeys(Scope(), Tokens(192), twice).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::vector<BlockExtra> large = {{0, Bytes(kExtraBytesMax + 1)}};
  EXPECT_EQ(ChainKeys(Scope(), Tokens(192), large).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ChainKey, TokensShortOfABlockHaveNone) {
  EXPECT_TRUE(ChainKeys(Scope(), Tokens(63))->empty());
}

}  // namespace
}  // namespace latentkv
