#include "kernels/project.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace latentkv {
namespace {

constexpr uint32_t kRank = 24, kChannels = 90, kTokens = 64;
// In steps; these channels are few, so that a column of int8 is coarse.
constexpr float kErrorMax = 0.12f;

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

std::vector<float> Zeros(const std::vector<float>& like) {
  return std::vector<float>(like.size());
}

TEST(MakeEncoder, FindsTheLatentsThatADecoderWasGiven) {
  const std::vector<float> decoder = Noise(kRank * kChannels, 1);
  const std::vector<float> latents = Noise(kTokens * kRank, 4);
  std::vector<float> values;
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (uint32_t c = 0; c < kChannels; ++c) {
      double value = 0;
      for (uint32_t r = 0; r < kRank; ++r)
        value += double{latents[t * kRank + r]} * decoder[r * kChannels + c];
      values.push_back(static_cast<float>(value));
    }
  }
  const auto encoder = MakeEncoder(decoder, Weights(), kRank, kChannels);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  for (const Backend backend : AvailableBackends()) {
    for (const float step : {1.0f, 0.01f, 1e-5f}) {
      std::vector<float> found(latents.size());
      Project(*encoder, values, Zeros(values), step, kTokens, kRank,
              absl::MakeSpan(found), backend);
      for (size_t i = 0; i < latents.size(); ++i)
        ASSERT_NEAR(found[i] * step, latents[i], 0.02f + kErrorMax * step);
      constexpr uint32_t kLive = 7;
      found.assign(kTokens * kLive, NAN);
      Project(*encoder, values, Zeros(values), step, kTokens, kLive,
              absl::MakeSpan(found), backend);
      for (size_t i = 0; i < kTokens * kLive; ++i) {
        ASSERT_NEAR(found[i] * step, latents[i / kLive * kRank + i % kLive],
                    0.02f + kErrorMax * step);
      }
    }
  }
}

TEST(Project, GivesTheSameBitsOnEveryBackend) {
  const auto encoder =
      MakeEncoder(Noise(kRank * kChannels, 1), Weights(), kRank, kChannels);
  const std::vector<float> values = Noise(kTokens * kChannels, 3);
  std::vector<float> first(kTokens * kRank), other(first.size());
  Project(*encoder, values, Zeros(values), 0.25f, kTokens, kRank,
          absl::MakeSpan(first), Backend::kPortable);
  for (const Backend backend : AvailableBackends()) {
    Project(*encoder, values, Zeros(values), 0.25f, kTokens, kRank,
            absl::MakeSpan(other), backend);
    ASSERT_EQ(first, other) << BackendName(backend);
  }
}

TEST(Project, TakesTheBaseAway) {
  const auto encoder =
      MakeEncoder(Noise(kRank * kChannels, 1), Weights(), kRank, kChannels);
  const std::vector<float> values = Noise(kTokens * kChannels, 3),
                           base = Noise(kTokens * kChannels, 4);
  std::vector<float> left, first(kTokens * kRank), other(first.size());
  for (size_t i = 0; i < values.size(); ++i)
    left.push_back(values[i] - base[i]);
  for (const Backend backend : AvailableBackends()) {
    Project(*encoder, values, base, 0.25f, kTokens, kRank,
            absl::MakeSpan(first), backend);
    Project(*encoder, left, Zeros(left), 0.25f, kTokens, kRank,
            absl::MakeSpan(other), backend);
    ASSERT_EQ(first, other) << BackendName(backend);
  }
}

TEST(Project, KeepsTokensFarOutToTheirOwnAccuracyAndMarksWhatIsNotFinite) {
  const std::vector<float> decoder = Noise(kRank * kChannels, 1);
  const auto encoder = MakeEncoder(decoder, Weights(), kRank, kChannels);
  std::vector<float> values(4 * kChannels);
  for (uint32_t c = 0; c < kChannels; ++c) {
    values[c] = 3000 * decoder[c];           // Latent 0 is 3000.
    values[kChannels + c] = decoder[c] / 4;  // Beside it one that is small.
  }
  values[2 * kChannels + 5] = INFINITY;
  values[3 * kChannels] = NAN;
  std::vector<float> found(4 * kRank);
  Project(*encoder, values, Zeros(values), 1.0f, 4, kRank,
          absl::MakeSpan(found));
  EXPECT_NEAR(found[0], 3000, 60);
  EXPECT_NEAR(found[kRank], 0.25f, kErrorMax);
  for (uint32_t i = 2 * kRank; i < 4 * kRank; ++i)
    EXPECT_TRUE(std::isnan(found[i]));
}

TEST(MakeEncoder, LeavesAResidualWithNothingMoreToGain) {
  const std::vector<float> decoder = Noise(kRank * kChannels, 1),
                           weight = Weights();
  const std::vector<float> values = Noise(kTokens * kChannels, 6);
  const auto encoder = MakeEncoder(decoder, weight, kRank, kChannels);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  std::vector<float> latents(kTokens * kRank);
  constexpr float kStep = 1e-3f;
  Project(*encoder, values, Zeros(values), kStep, kTokens, kRank,
          absl::MakeSpan(latents));
  // Around the minimum of the weighted error moving any latent gains nothing
  // that the product's accuracy hides.
  const auto error = [&](uint32_t t, uint32_t moved, double by) {
    double sum = 0;
    for (uint32_t c = 0; c < kChannels; ++c) {
      double residual = values[t * kChannels + c];
      for (uint32_t r = 0; r < kRank; ++r) {
        residual -=
            (double{latents[t * kRank + r]} * kStep + (r == moved ? by : 0)) *
            decoder[r * kChannels + c];
      }
      sum += double{weight[c]} * residual * residual;
    }
    return sum;
  };
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (uint32_t r = 0; r < kRank; ++r) {
      for (const double by : {-0.05, 0.05})
        ASSERT_GT(error(t, r, by), error(t, r, 0));
    }
  }
}

TEST(MakeEncoder, TakesRowsTooSmallForAScaleForNothing) {
  // Behind the ridge the second row's encoder is 190 of the smallest float: a
  // 127th of it is rounded to one, by which it is no int8.
  const absl::StatusOr<Encoder> encoder =
      MakeEncoder({1000, 0, 0, 1.33e-44f}, {1, 1}, 2, 2);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  EXPECT_GT(encoder->column_scale[0], 0);
  EXPECT_EQ(encoder->column_scale[1], 0);
}

TEST(MakeEncoder, RefusesWhatHasNoEncoder) {
  std::vector<float> decoder = Noise(kRank * kChannels, 1), weight = Weights();
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank + 1, kChannels).status().code(),
            absl::StatusCode::kInvalidArgument);
  weight[3] = -1;
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank, kChannels).status().code(),
            absl::StatusCode::kInvalidArgument);
  weight[3] = NAN;
  EXPECT_EQ(MakeEncoder(decoder, weight, kRank, kChannels).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::fill(decoder.begin(), decoder.end(), 0.0f);
  EXPECT_EQ(MakeEncoder(decoder, Weights(), kRank, kChannels).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
