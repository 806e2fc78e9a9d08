#include "kernels/planes.h"

#include <gtest/gtest.h>

#include <random>
#include <tuple>
#include <vector>

#include "core/bytes.h"

namespace latentkv {
namespace {

Bytes Planes(const Bytes& values, uint32_t tokens, uint32_t channels,
             uint32_t element, Backend backend = BestBackend()) {
  Bytes planes(values.size());
  SplitPlanes(values.data(), tokens, channels, element, planes.data(),
              planes.data() + size_t{tokens} * channels, backend);
  return planes;
}

Bytes Merged(const Bytes& planes, uint32_t tokens, uint32_t channels,
             uint32_t element, Backend backend = BestBackend()) {
  Bytes values(planes.size());
  MergePlanes(planes.data(), planes.data() + size_t{tokens} * channels, tokens,
              channels, element, values.data(), backend);
  return values;
}

// By the definition, a bit at a time.
Bytes Definition(const Bytes& values, uint32_t tokens, uint32_t channels,
                 uint32_t element) {
  Bytes planes(values.size());
  const uint32_t bits = 8 * element;
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < channels; ++c) {
      const uint8_t* value =
          values.data() + (size_t{t} * channels + c) * element;
      for (uint32_t bit = 0; bit < bits; ++bit) {
        const uint32_t turned = (bit + 1) % bits,
                       plane = element - 1 - turned / 8;
        const uint32_t set = value[bit / 8] >> bit % 8 & 1;
        planes[(size_t{plane} * channels + c) * tokens + t] |= set
                                                               << turned % 8;
      }
    }
  }
  return planes;
}

class PlanesOfShape
    : public testing::TestWithParam<std::tuple<uint32_t, uint32_t, uint32_t>> {
};

TEST_P(PlanesOfShape, AreTheDefinitionsAndMergeBack) {
  const auto [element, tokens, channels] = GetParam();
  std::mt19937 random(tokens * 1000 + channels);
  Bytes values(size_t{tokens} * channels * element);
  for (uint8_t& byte : values) byte = random();
  for (Backend backend : AvailableBackends()) {
    const Bytes planes = Planes(values, tokens, channels, element, backend);
    EXPECT_EQ(planes, Definition(values, tokens, channels, element))
        << BackendName(backend);
    EXPECT_EQ(Merged(planes, tokens, channels, element, backend), values)
        << BackendName(backend);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PlanesOfShape,
                         testing::Combine(testing::Values(1, 2, 4),
                                          testing::Values(1, 7, 8, 32, 64, 65),
                                          testing::Values(1, 2, 8, 9, 64,
                                                          131)));

TEST(Planes, EveryPatternOfTwoBytesComesBack) {
  constexpr uint32_t kTokens = 64, kChannels = 1024;
  Bytes values;
  ByteWriter writer(&values);
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) writer.Put<uint16_t>(bits);
  EXPECT_EQ(
      Merged(Planes(values, kTokens, kChannels, 2), kTokens, kChannels, 2),
      values);
}

// The first plane of bf16 is its exponent, whatever the sign: that is what
// makes it worth coding.
TEST(Planes, TheFirstHoldsTheExponentWithoutTheSign) {
  Bytes values;
  ByteWriter writer(&values);
  writer.Put<uint16_t>(0x3f80);  // 1
  writer.Put<uint16_t>(0xbf80);  // -1
  EXPECT_EQ(Planes(values, 2, 1, 2), (Bytes{0x7f, 0x7f, 0x00, 0x01}));
}

TEST(Planes, NothingNeedBeAligned) {
  std::mt19937 random(2);
  for (uint32_t element : {1, 2, 4}) {
    Bytes values(64 * 33 * element + 1), planes(values.size()),
        back(values.size());
    for (uint8_t& byte : values) byte = random();
    SplitPlanes(values.data() + 1, 64, 33, element, planes.data() + 1,
                planes.data() + 1 + 64 * 33);
    MergePlanes(planes.data() + 1, planes.data() + 1 + 64 * 33, 64, 33, element,
                back.data() + 1);
    back[0] = values[0];
    EXPECT_EQ(back, values);
  }
}

}  // namespace
}  // namespace latentkv
