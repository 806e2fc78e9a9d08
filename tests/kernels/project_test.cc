#include "kernels/project.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace latentkv {
namespace {

constexpr uint32_t kRank = 24, kChannels = 90, kTokens = 64;

std::vector<float> Noise(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<float> Weights() {
  std::vector<float> weight = Noise(kChannels, 2);
  for (float& w : weight) w = 0.1f + w * w;
  return weight;
}

TEST(MakeEncoder, FindsTheLatentsThatADecoderWasGiven) {
  const std::vector<float> decoder = Noise(kRank * kChannels, 1);
  const std::vector<float> latents = Noise(kTokens * kRank, 4);
  std::vector<float> values;
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (uint32_t c = 0; c < kChannels; ++c) {
      double value = 0;
      for (uint32_t r = 0; r < kRank; ++r) value += double{latents[t * kRank + r]} * decoder[r * kChannels + c];
      values.push_back(static_cast<float>(value));
    }
  }
  const auto encoder = MakeEncoder(decoder, Weights(), kRank, kChannels);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  std::vector<float> found(latents.size());
  Project(values, *encoder, kTokens, kRank, kRank, kChannels, absl::MakeSpan(found));
  for (size_t i = 0; i < latents.size(); ++i) ASSERT_NEAR(found[i], latents[i], 2e-5);
  constexpr uint32_t kLive = 7;
  Project(values, *encoder, kTokens, kLive, kRank, kChannels, absl::MakeSpan(found));
  for (size_t i = 0; i < kTokens * kLive; ++i) {
    ASSERT_NEAR(found[i], latents[i / kLive * kRank + i % kLive], 2e-5);
  }
}

TEST(MakeEncoder, LeavesAResidualWithNothingMoreToGain) {
  const std::vector<float> decoder = Noise(kRank * kChannels, 1), weight = Weights();
  const std::vector<float> values = Noise(kTokens * kChannels, 6);
  const auto encoder = MakeEncoder(decoder, weight, kRank, kChannels);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  std::vector<float> latents(kTokens * kRank);
  Project(values, *encoder, kTokens, kRank, kRank, kChannels, absl::MakeSpan(latents));
  // At the minimum of the weighted error its gradient, D W (y - D' z), is zero.
  for (uint32_t t = 0; t < kTokens; ++t) {
    std::vector<double> gradient(kRank);
    for (uint32_t c = 0; c < kChannels; ++c) {
      double residual = values[t * kChannels + c];
      for (uint32_t r = 0; r < kRank; ++r) residual -= double{latents[t * kRank + r]} * decoder[r * kChannels + c];
      for (uint32_t r = 0; r < kRank; ++r) gradient[r] += decoder[r * kChannels + c] * double{weight[c]} * residual;
    }
    for (double g : gradient) ASSERT_NEAR(g, 0, 2e-3);
  }
}

TEST(MakeEncoder, RefusesWhatHasNoEncoder) {
  std::vector<float> decoder = Noise(kRank * kChannels, 1), weight = Weights();
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank + 1, kChannels).status().code(), absl::StatusCode::kInvalidArgument);
  weight[3] = -1;
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank, kChannels).status().code(), absl::StatusCode::kInvalidArgument);
  weight[3] = NAN;
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank, kChannels).status().code(), absl::StatusCode::kInvalidArgument);
  std::fill(decoder.begin(), decoder.end(), 0.0f);
  EXPECT_EQ(MakeEncoder(decoder, Weights(), kRank, kChannels).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
