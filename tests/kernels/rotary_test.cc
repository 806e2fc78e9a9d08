#include "kernels/rotary.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

namespace latentkv {
namespace {

LayerGeometry Layer(uint32_t heads, uint32_t dim, uint32_t rotary_dim,
                    RotaryPairing pairing, float scale) {
  LayerGeometry layer;
  layer.kv_heads = heads;
  layer.head_dim = dim;
  layer.rotary_dim = rotary_dim;
  layer.pairing = pairing;
  layer.rotary_scale = scale;
  for (uint32_t i = 0; i < rotary_dim / 2; ++i)
    layer.inverse_frequencies.push_back(std::pow(1e4, -2.0 * i / rotary_dim));
  return layer;
}

const LayerGeometry kLayers[] = {
    Layer(3, 64, 64, RotaryPairing::kHalves, 1),
    Layer(2, 128, 96, RotaryPairing::kHalves, 1.25f),
    Layer(1, 20, 20, RotaryPairing::kHalves, 1),
    Layer(2, 64, 64, RotaryPairing::kNeighbours, 1),
    Layer(3, 22, 14, RotaryPairing::kNeighbours, 2),
    Layer(2, 16, 0, RotaryPairing::kNone, 1),
};

std::vector<float> Noise(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(Rotate, TurnsEachPairByPositionTimesFrequency) {
  for (const LayerGeometry& layer : kLayers) {
    const uint32_t first = 100000, tokens = 9, pairs = layer.rotary_dim / 2;
    const size_t stride = layer.ChannelsOf(true) + 5;
    const std::vector<float> before = Noise(tokens * stride, 1);
    std::vector<float> keys = before;
    Rotate(layer, MakeRotaryTable(layer, first, tokens), keys.data(), stride);
    for (size_t at = 0; at < keys.size(); ++at) {
      const size_t token = at / stride, dim = at % stride % layer.head_dim;
      if (at % stride >= layer.ChannelsOf(true) || dim >= layer.rotary_dim) {
        ASSERT_EQ(keys[at], before[at]) << "not rotated, so kept";
        continue;
      }
      const bool halves = layer.pairing == RotaryPairing::kHalves;
      const size_t pair = halves ? dim % pairs : dim / 2;
      const bool second = halves ? dim >= pairs : dim % 2 == 1;
      const size_t apart = halves ? pairs : 1;
      const double angle = (first + token) * layer.inverse_frequencies[pair];
      const double other = before[second ? at - apart : at + apart];
      const double expected = before[at] * std::cos(angle) +
                              (second ? other : -other) * std::sin(angle);
      ASSERT_NEAR(keys[at], layer.rotary_scale * expected,
                  2e-6 * (1 + std::abs(expected)));
    }
  }
}

TEST(Rotate, UnrotateBringsTheKeysBack) {
  for (const LayerGeometry& layer : kLayers) {
    const std::vector<float> before = Noise(64 * layer.ChannelsOf(true), 2);
    std::vector<float> keys = before;
    const RotaryTable table = MakeRotaryTable(layer, 4096, 64);
    Rotate(layer, table, keys.data(), layer.ChannelsOf(true));
    EXPECT_EQ(keys == before, layer.rotary_dim == 0);
    Unrotate(layer, table, keys.data(), layer.ChannelsOf(true));
    for (size_t i = 0; i < keys.size(); ++i)
      ASSERT_NEAR(keys[i], before[i], 2e-6);
  }
}

TEST(Rotate, EveryBackendGivesTheSameBits) {
  for (const LayerGeometry& layer : kLayers) {
    const RotaryTable table = MakeRotaryTable(layer, 777, 64);
    for (const bool undo : {false, true}) {
      std::vector<float> expected = Noise(64 * layer.ChannelsOf(true), 3);
      const std::vector<float> before = expected;
      (undo ? Unrotate : Rotate)(layer, table, expected.data(),
                                 layer.ChannelsOf(true), Backend::kPortable);
      for (Backend backend : AvailableBackends()) {
        std::vector<float> keys = before;
        (undo ? Unrotate : Rotate)(layer, table, keys.data(),
                                   layer.ChannelsOf(true), backend);
        EXPECT_EQ(std::memcmp(keys.data(), expected.data(),
                              keys.size() * sizeof(float)),
                  0)
            << BackendName(backend);
      }
    }
  }
}

TEST(FromFloat, EveryValueOfTheTypeComesBackAsItself) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp8E4M3}) {
    const uint32_t width = DTypeBytes(dtype);
    const uint32_t values = 1u << 8 * width;
    Bytes all(values * width), back(all.size());
    for (uint32_t i = 0; i < values; ++i)
      std::memcpy(all.data() + i * width, &i, width);
    for (Backend backend : AvailableBackends()) {
      std::vector<float> floats(values);
      ToFloat(dtype, all.data(), values, floats.data(), backend);
      FromFloat(dtype, floats.data(), values, back.data(), backend);
      for (uint32_t i = 0; i < values; ++i) {
        if (std::isnan(floats[i])) continue;
        ASSERT_EQ(
            std::memcmp(all.data() + i * width, back.data() + i * width, width),
            0)
            << i;
      }
    }
  }
}

TEST(FromFloat, RoundsToTheNearestAndTiesToEven) {
  const auto convert = [](DType dtype, float value) {
    uint16_t bits = 0;
    FromFloat(dtype, &value, 1, reinterpret_cast<uint8_t*>(&bits));
    return bits;
  };
  EXPECT_EQ(convert(DType::kBf16, 1 + 0x1p-8f), 0x3f80);
  EXPECT_EQ(convert(DType::kBf16, 1 + 0x3p-8f), 0x3f82);
  EXPECT_EQ(convert(DType::kBf16, 1 + 0x1p-8f + 0x1p-20f), 0x3f81);
  EXPECT_EQ(convert(DType::kBf16, 3.4e38f), 0x7f80);
  EXPECT_EQ(convert(DType::kFp16, 1 + 0x1p-11f), 0x3c00);
  EXPECT_EQ(convert(DType::kFp16, 65519), 0x7bff);
  EXPECT_EQ(convert(DType::kFp16, 65520), 0x7c00);
  EXPECT_EQ(convert(DType::kFp16, 0x1p-25f), 0);
  EXPECT_EQ(convert(DType::kFp16, 0x3p-25f), 2);
  EXPECT_EQ(convert(DType::kFp8E4M3, 1 + 0x1p-4f), 0x38);
  EXPECT_EQ(convert(DType::kFp8E4M3, -1e9f), 0xfe);
  EXPECT_EQ(convert(DType::kFp8E4M3, 0x3p-10f), 2);
}

TEST(FromFloat, EveryBackendGivesTheSameBitsForAnyFloat) {
  std::mt19937 random(9);
  std::vector<float> floats(200003);
  for (float& value : floats)
    value = std::bit_cast<float>(static_cast<uint32_t>(random()));
  for (size_t i = 0; i < floats.size(); i += 3) floats[i] = i * 1e-6f;
  for (const DType dtype :
       {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4M3}) {
    const size_t bytes = floats.size() * DTypeBytes(dtype);
    Bytes expected(bytes), got(bytes);
    FromFloat(dtype, floats.data(), floats.size(), expected.data(),
              Backend::kPortable);
    for (Backend backend : AvailableBackends()) {
      FromFloat(dtype, floats.data(), floats.size(), got.data(), backend);
      EXPECT_EQ(got, expected) << BackendName(backend);
    }
  }
}

TEST(FromFloat, ANanStaysANan) {
  const std::vector<float> nans(33, std::bit_cast<float>(0x7f800001u));
  for (const DType dtype :
       {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4M3}) {
    for (Backend backend : AvailableBackends()) {
      Bytes bytes(33 * DTypeBytes(dtype));
      std::vector<float> back(33, 0);
      FromFloat(dtype, nans.data(), 33, bytes.data(), backend);
      ToFloat(dtype, bytes.data(), 33, back.data(), backend);
      for (float value : back) EXPECT_TRUE(std::isnan(value));
    }
  }
}

}  // namespace
}  // namespace latentkv
