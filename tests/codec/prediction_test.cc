// What side information does: tokens, and the latents of earlier groups.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "codec/block_state.h"
#include "core/limits.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

Bytes Encoded(const Codec& codec, const BlockPlace& place, const Bytes& raw) {
  EncodeOptions options;
  options.exact = false;
  options.step = 1;
  return *codec.Encode(place, raw, options);
}

// The model's basis but for its embedding.
const Codec& WithoutEmbedding() {
  static const std::unique_ptr<Codec> codec = [] {
    BasisParts parts = SyntheticParts();
    parts.embedding = {};
    for (BasisGroup& group : parts.groups)
      group.feature_scale.clear(), group.feature_rows.clear();
    return *Codec::Create(parts.geometry, *Basis::Create(parts));
  }();
  return *codec;
}

// The tokens at which two raw forms differ.
std::vector<uint32_t> DifferentTokens(const Geometry& geometry, const Bytes& a,
                                      const Bytes& b) {
  std::vector<uint32_t> different;
  for (uint32_t token = 0; token < kBlockTokens; ++token) {
    size_t part = 0;
    bool equal = true;
    for (const LayerGeometry& layer : geometry.layers) {
      for (const bool keys : {true, false}) {
        const size_t row =
            size_t{layer.ChannelsOf(keys)} * DTypeBytes(layer.dtype);
        equal = equal && std::equal(a.begin() + part + token * row,
                                    a.begin() + part + (token + 1) * row,
                                    b.begin() + part + token * row);
        part += row * kBlockTokens;
      }
    }
    if (!equal) different.push_back(token);
  }
  return different;
}

TEST(Prediction, FromTokensMakesFramesSmallerAtTheSameLoss) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  const Bytes frame = Encoded(Model().codec(), PlaceOf(tokens, 64), raw);
  const Bytes without = Encoded(WithoutEmbedding(), PlaceOf(tokens, 64), raw);
  EXPECT_LT(frame.size(), 0.9 * without.size());
  EXPECT_LT(VerifyFrame(frame)->loss_own, 1.1 * VerifyFrame(without)->loss_own);
}

TEST(Prediction, FromEarlierGroupsMakesTheirHeirsSmaller) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  BasisParts parts = SyntheticParts();
  parts.inherited_rank = 0;
  parts.groups[1].decoder.resize(parts.groups[1].rank *
                                 parts.groups[1].channels);
  const auto codec = *Codec::Create(parts.geometry, *Basis::Create(parts));
  const std::vector<Bytes> with =
      SectionsOf(Encoded(Model().codec(), PlaceOf(tokens, 64), raw));
  const std::vector<Bytes> without =
      SectionsOf(Encoded(*codec, PlaceOf(tokens, 64), raw));
  EXPECT_EQ(with[0], without[0]);
  EXPECT_LT(with[1].size(), 0.97 * without[1].size());
}

TEST(Prediction, AnotherHistoryOfTokensRestoresOtherValues) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes frame =
      Encoded(Model().codec(), PlaceOf(tokens, 64), Model().Block(tokens, 64));
  ASSERT_TRUE(ReadSection(Model(), frame, 0).predicted);
  const Bytes restored = Restored(Model().codec(), frame, PlaceOf(tokens, 64));
  // A token decides its own features and, with a history of 2, those of the
  // next.
  std::vector<uint32_t> other = tokens;
  other[64 + 30] = (other[64 + 30] + 1) % 100;
  EXPECT_THAT(
      DifferentTokens(Model().geometry(), restored,
                      Restored(Model().codec(), frame, PlaceOf(other, 64))),
      testing::ElementsAre(30, 31));
  // The last token of the block before is known too; the one before it is not
  // looked at.
  other = tokens;
  other[63] = (other[63] + 1) % 100;
  other[62] = (other[62] + 1) % 100;
  EXPECT_THAT(
      DifferentTokens(Model().geometry(), restored,
                      Restored(Model().codec(), frame, PlaceOf(other, 64))),
      testing::ElementsAre(0));
}

TEST(Prediction, IsSwitchedOffForASectionThatItDoesNotServe) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens, 1),
                              other = Model().Tokens(2 * kBlockTokens, 9);
  // Not of the tokens that are said.
  const Bytes raw = Model().Block(other, 64);
  const Bytes frame = Encoded(Model().codec(), PlaceOf(tokens, 64), raw);
  EXPECT_FALSE(ReadSection(Model(), frame, 0).predicted);
  EXPECT_EQ(
      SectionsOf(frame)[0],
      SectionsOf(Encoded(WithoutEmbedding(), PlaceOf(tokens, 64), raw))[0]);
  // What does not use the tokens does not depend on them.
  const Bytes restored = Restored(Model().codec(), frame, PlaceOf(tokens, 64));
  BlockPages pages(Model().geometry());
  ASSERT_TRUE(Restore(Model().codec(), frame, PlaceOf(other, 64), &pages).ok());
  const size_t group_bytes = restored.size() / 2;
  EXPECT_TRUE(std::equal(restored.begin(), restored.begin() + group_bytes,
                         pages.raw().begin()));
}

TEST(Prediction, StaysOnForASectionWithOneTokenThatIsStoredExact) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  // Values above 500, and the largest there are.
  for (const uint8_t exponent : {0x44, 0x7f}) {
    Bytes raw = Model().Block(tokens, 64);
    for (size_t at = 50 * 64; at < raw.size(); at += kBlockTokens * 64) {
      raw[at + 1] = exponent;
      raw[at] = 0x7f;
    }
    const Bytes frame = Encoded(Model().codec(), PlaceOf(tokens, 64), raw);
    for (const uint32_t section : {0, 1}) {
      EXPECT_TRUE(ReadSection(Model(), frame, section).predicted);
      EXPECT_THAT(ReadSection(Model(), frame, section).exact_tokens,
                  testing::ElementsAre(50));
    }
  }
}

TEST(Prediction, TokensBeyondTheVocabularyHaveNoFeatures) {
  std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  tokens[64 + 10] = 100;
  tokens[64 + 11] = 0xffffffff;
  tokens[64 + 12] = 1u << 31;
  const BlockState state(*Model().basis(), 64, tokens);
  const absl::Span<const int16_t> features = state.features();
  const Embedding& embedding = Model().basis()->embedding();
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    for (uint32_t back = 0; back < 2; ++back) {
      const uint32_t token = tokens[64 + t - back];
      for (uint32_t d = 0; d < 8; ++d) {
        ASSERT_EQ(features[t * 16 + back * 8 + d],
                  token < 100 ? embedding.rows[token * 8 + d] : 0);
      }
    }
  }
  const Bytes raw = Model().Block(tokens, 64);
  EXPECT_EQ(Restored(Model().codec(),
                     Encoded(Model().codec(), PlaceOf(tokens, 64), raw),
                     PlaceOf(tokens, 64))
                .size(),
            raw.size());
}

TEST(Prediction, AChainsFirstTokenHasNoneBefore) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const BlockState state(*Model().basis(), 0, tokens);
  const absl::Span<const int16_t> features = state.features();
  EXPECT_THAT(std::vector<int16_t>(features.begin() + 8, features.begin() + 16),
              testing::Each(0));
  EXPECT_THAT(
      std::vector<int16_t>(features.begin() + 16, features.begin() + 24),
      testing::Not(testing::Each(0)));
}

TEST(BlockState, HandsOnTheLeadingLatentsOfEachGroup) {
  BlockState state(*Model().basis(), 64, Model().Tokens(2 * kBlockTokens));
  std::vector<int16_t> latents;
  for (int i = 0; i < 24 * 64; ++i) latents.push_back(static_cast<int16_t>(i));
  EXPECT_EQ(state.inherited(5).size(), 0u);
  state.AddGroup(latents, 24, 24);
  EXPECT_THAT(state.inherited(5), testing::ElementsAre(120, 121, 122, 123));
  // A group of fewer latents than its heirs take has zeros behind them.
  state.Restart();
  EXPECT_EQ(state.inherited(5).size(), 0u);
  state.AddGroup(latents, 24, 3);
  EXPECT_THAT(state.inherited(5), testing::ElementsAre(120, 121, 122, 0));
}

}  // namespace
}  // namespace latentkv
