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

Problem MakeProblem(uint32_t rank, uint32_t channels, uint32_t tokens, int magnitude, double density, uint32_t seed) {
  Problem p{rank, channels, tokens, {}, {}, {}};
  std::mt19937 random(seed);
  std::bernoulli_distribution present(density);
  std::uniform_int_distribution<int> latent(-magnitude, magnitude);
  for (size_t i = 0; i < size_t{rank} * channels; ++i) p.decoder.push_back(static_cast<int8_t>(random()));
  for (size_t i = 0; i < size_t{tokens} * rank; ++i) p.latents.push_back(present(random) ? latent(random) : 0);
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < channels; ++c) {
      int64_t sum = 0;
      for (uint32_t r = 0; r < rank; ++r) sum += int64_t{p.latents[t * rank + r]} * p.decoder[r * channels + c];
      p.sums.push_back(static_cast<int32_t>(sum));
    }
  }
  return p;
}

TEST(Reconstruct, EveryBackendIsExactForAnyShapeAndDensity) {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const uint32_t rank = 1 + random() % 150, channels = 1 + random() % 200, tokens = 1 + random() % 70;
    const double density = round % 4 == 0 ? 1 : round % 4 == 1 ? 0.02 : 0.3;
    const Problem p = MakeProblem(rank, channels, tokens, round % 2 ? 256 : 3, density, round);
    const PackedDecoder packed = PackDecoder(p.decoder, rank, channels);
    for (Backend backend : AvailableBackends()) {
      std::vector<int32_t> sums(p.sums.size(), -1);
      Reconstruct(packed, p.latents, tokens, absl::MakeSpan(sums), backend);
      ASSERT_EQ(sums, p.sums) << BackendName(backend) << " " << rank << "x" << channels << "x" << tokens;
    }
  }
}

TEST(Reconstruct, TheLargestValuesDoNotOverflow) {
  Problem p = MakeProblem(4096, 70, 5, 1, 0, 1);
  std::fill(p.decoder.begin(), p.decoder.end(), -128);
  for (size_t i = 0; i < p.latents.size(); ++i) p.latents[i] = i / 4096 % 2 ? 256 : -256;
  for (Backend backend : AvailableBackends()) {
    std::vector<int32_t> sums(p.sums.size());
    Reconstruct(PackDecoder(p.decoder, 4096, 70), p.latents, 5, absl::MakeSpan(sums), backend);
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(sums[i], (i / 70 % 2 ? -1 : 1) * 128 * 256 * 4096) << BackendName(backend);
    }
  }
}

TEST(Dequantize, EveryBackendRoundsAsOneFusedMultiplyAdd) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (uint32_t channels : {1, 7, 8, 64, 131}) {
    std::vector<float> mean, scale;
    std::vector<int32_t> sums;
    for (uint32_t c = 0; c < channels; ++c) mean.push_back(normal(random)), scale.push_back(normal(random));
    for (uint32_t i = 0; i < 6 * channels; ++i) sums.push_back(static_cast<int32_t>(random()) >> random() % 31);
    const float step = 0.0371f;
    for (Backend backend : AvailableBackends()) {
      std::vector<float> values(sums.size());
      Dequantize(sums, mean, scale, step, absl::MakeSpan(values), backend);
      for (size_t i = 0; i < sums.size(); ++i) {
        const volatile float factor = scale[i % channels] * step;
        ASSERT_EQ(values[i], std::fma(factor, static_cast<float>(sums[i]), mean[i % channels]))
            << BackendName(backend);
      }
    }
  }
}

TEST(DequantizeOnto, EveryBackendAddsToWhatIsThereWithOneRounding) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (uint32_t channels : {1, 7, 8, 64, 131}) {
    std::vector<float> scale, before;
    std::vector<int32_t> sums;
    for (uint32_t c = 0; c < channels; ++c) scale.push_back(normal(random));
    for (uint32_t i = 0; i < 6 * channels; ++i) {
      sums.push_back(static_cast<int32_t>(random()) >> random() % 31);
      before.push_back(normal(random));
    }
    const float step = 0.0371f;
    for (Backend backend : AvailableBackends()) {
      std::vector<float> values = before;
      DequantizeOnto(sums, scale, step, absl::MakeSpan(values), backend);
      for (size_t i = 0; i < sums.size(); ++i) {
        const volatile float factor = scale[i % channels] * step;
        ASSERT_EQ(values[i], std::fma(factor, static_cast<float>(sums[i]), before[i])) << BackendName(backend);
      }
    }
  }
}

}  // namespace
}  // namespace latentkv
