#include "kernels/distance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace latentkv {
namespace {

TEST(WeightedDistance, IsTheSameOnEveryBackendForAnyLength) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t count : {0, 1, 7, 8, 15, 16, 17, 100, 1920}) {
    std::vector<float> a, b, weight;
    double expected = 0;
    for (size_t i = 0; i < count; ++i) {
      a.push_back(normal(random)), b.push_back(normal(random)),
          weight.push_back(std::fabs(normal(random)));
      expected +=
          double{weight[i]} * (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    }
    const float portable = WeightedDistance(a, b, weight, Backend::kPortable);
    EXPECT_NEAR(portable, expected, 1e-5 * expected);
    for (Backend backend : AvailableBackends())
      EXPECT_EQ(WeightedDistance(a, b, weight, backend), portable);
  }
}

TEST(WeightedDistance, IsNotFiniteWhereAValueIsNot) {
  std::vector<float> a(40, 1), b(40, 2), weight(40, 1);
  a[33] = NAN;
  for (Backend backend : AvailableBackends())
    EXPECT_TRUE(std::isnan(WeightedDistance(a, b, weight, backend)));
}

}  // namespace
}  // namespace latentkv
