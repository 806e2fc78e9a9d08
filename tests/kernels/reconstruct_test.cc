#include "kernels/reconstruct.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace latentkv {
namespace {

struct Problem {
  uint32_t rank, channels, tokens;
  std::vector<int8_t> decoder;
  std::vector<int16_t> latents;
  std::vector<int32_t> sums;  // By the definition.
};

Problem MakeProblem(uint32_t rank, uint32_t channels, uint32_t tokens,
                    int magnitude, double density, uint32_t seed) {
  Problem p{rank, channels, tokens, {}, {}, {}};
  std::mt19937 random(seed);
  std::bernoulli_distribution present(density);
  std::uniform_int_distribution<int> latent(-magnitude, magnitude);
  for (size_t i = 0; i < size_t{rank} * channels; ++i)
    p.decoder.push_back(static_cast<int8_t>(random()));
  for (size_t i = 0; i < size_t{tokens} * rank; ++i)
    p.latents.push_back(present(random) ? latent(random) : 0);
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < channels; ++c) {
      int64_t sum = 0;
      for (uint32_t r = 0; r < rank; ++r)
        sum += int64_t{p.latents[t * rank + r]} * p.decoder[r * channels + c];
      p.sums.push_back(static_cast<int32_t>(sum));
    }
  }
  return p;
}

TEST(Reconstruct, EveryBackendIsExactForAnyShapeAndDensity) {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const uint32_t rank = 1 + random() % 150, channels = 1 + random() % 200,
                   tokens = 1 + random() % 70;
    const double density = round % 4 == 0 ? 1 : round % 4 == 1 ? 0.02 : 0.3;
    const Problem p = MakeProblem(rank, channels, tokens, round % 2 ? 256 : 3,
                                  density, round);
    const PackedDecoder packed = PackDecoder(p.decoder, rank, channels);
    for (Backend backend : AvailableBackends()) {
      std::vector<int32_t> sums(p.sums.size(), -1);
      Reconstruct(packed, p.latents, rank, tokens, channels,
                  absl::MakeSpan(sums), backend);
      ASSERT_EQ(sums, p.sums) << BackendName(backend) << " " << rank << "x"
                              << channels << "x" << tokens;
    }
  }
}

TEST(Reconstruct, TheLargestValuesDoNotOverflow) {
  Problem p = MakeProblem(4096, 70, 5, 1, 0, 1);
  std::fill(p.decoder.begin(), p.decoder.end(), -128);
  for (size_t i = 0; i < p.latents.size(); ++i)
    p.latents[i] = i / 4096 % 2 ? 256 : -256;
  for (Backend backend : AvailableBackends()) {
    std::vector<int32_t> sums(p.sums.size());
    Reconstruct(PackDecoder(p.decoder, 4096, 70), p.latents, 4096, 5, 70,
                absl::MakeSpan(sums), backend);
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(sums[i], (i / 70 % 2 ? -1 : 1) * 128 * 256 * 4096)
          << BackendName(backend);
    }
  }
}

struct Rows {
  std::vector<float> scale, base, values;
};

Rows RandomRows(uint32_t channels, uint32_t tokens, uint32_t seed) {
  Rows rows;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (uint32_t c = 0; c < channels; ++c) rows.scale.push_back(normal(random));
  for (uint32_t i = 0; i < channels * tokens; ++i) {
    rows.base.push_back(normal(random));
    rows.values.push_back(normal(random));
  }
  return rows;
}

constexpr float kStep = 0.0371f;

float Restored(const Problem& p, const Rows& rows, size_t i, float base) {
  // Rounded before it is used.
  const volatile float factor = rows.scale[i % p.channels] * kStep;
  return std::fma(factor, static_cast<float>(p.sums[i]), base);
}

TEST(Restore, EveryBackendRoundsOnceOntoOneRowOrOntoEachTokens) {
  for (uint32_t channels : {1, 7, 8, 64, 131}) {
    for (uint32_t tokens : {1, 6}) {
      const Problem p = MakeProblem(33, channels, tokens, 256, 0.5, channels);
      const Rows rows = RandomRows(channels, tokens, channels);
      const PackedDecoder packed = PackDecoder(p.decoder, p.rank, channels);
      const absl::Span<const float> mean =
          absl::MakeConstSpan(rows.base).first(channels);
      for (Backend backend : AvailableBackends()) {
        std::vector<float> values(rows.base.size());
        Restore(packed, p.latents, p.rank, tokens, rows.scale, kStep, mean,
                absl::MakeSpan(values), backend);
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(values[i], Restored(p, rows, i, mean[i % channels]))
              << BackendName(backend);
        }
        values = rows.base;  // In place.
        Restore(packed, p.latents, p.rank, tokens, rows.scale, kStep, values,
                absl::MakeSpan(values), backend);
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(values[i], Restored(p, rows, i, rows.base[i]))
              << BackendName(backend);
        }
      }
    }
  }
}

TEST(Restore, LatentsBehindTheDecodersRankDoNotCount) {
  const Problem p = MakeProblem(17, 70, 9, 100, 0.5, 3);
  std::vector<int16_t> wide(9 * 40, 77);
  for (uint32_t t = 0; t < 9; ++t)
    std::copy_n(p.latents.begin() + t * 17, 17, wide.begin() + t * 40);
  const Rows rows = RandomRows(70, 9, 4);
  for (Backend backend : AvailableBackends()) {
    std::vector<float> values(rows.base.size());
    Restore(PackDecoder(p.decoder, 17, 70), wide, 40, 9, rows.scale, kStep,
            rows.base, absl::MakeSpan(values), backend);
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(values[i], Restored(p, rows, i, rows.base[i]));
  }
}

TEST(RestoredDistances, AreExactWithFewChannelsAndOfAnEighthWithMany) {
  for (uint32_t channels : {70, 2000}) {
    constexpr uint32_t kTokens = 64;
    const Problem p = MakeProblem(24, channels, kTokens, 5, 0.5, channels);
    const Rows rows = RandomRows(channels, kTokens, 9);
    std::vector<float> weight;
    for (uint32_t c = 0; c < channels; ++c)
      weight.push_back(0.5f + static_cast<float>(c % 7));
    std::vector<float> first;
    for (Backend backend : AvailableBackends()) {
      const std::vector<float> distances = RestoredDistances(
          PackDecoder(p.decoder, 24, channels), p.latents, 24, kTokens,
          rows.scale, kStep, rows.base, rows.values, weight, backend);
      double sum = 0, expected_sum = 0;
      for (uint32_t t = 0; t < kTokens; ++t) {
        double expected = 0;
        for (uint32_t c = 0; c < channels; ++c) {
          const size_t i = t * channels + c;
          const double error =
              double{rows.values[i]} - Restored(p, rows, i, rows.base[i]);
          expected += weight[c] * error * error;
        }
        EXPECT_NEAR(distances[t], expected,
                    expected * (channels < 1024 ? 1e-5 : 0.5));
        sum += distances[t];
        expected_sum += expected;
      }
      EXPECT_NEAR(sum, expected_sum,
                  expected_sum * (channels < 1024 ? 1e-5 : 0.03))
          << BackendName(backend);
      if (first.empty()) first = distances;
      EXPECT_EQ(distances, first) << BackendName(backend);
    }
  }
}

}  // namespace
}  // namespace latentkv
