// Blocks of a model without a basis.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codec/codec.h"
#include "codec/scalar_codec.h"
#include "core/limits.h"
#include "kernels/rotary.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32,
                             DType::kFp8E4M3};
const std::vector<uint32_t> kTokens(2 * kBlockTokens, 7);

EncodeOptions At(float step) {
  EncodeOptions options;
  options.exact = false;
  options.step = step;
  return options;
}

// Values around `offset` whose spread differs from channel to channel and from
// token to token.
Bytes Block(const Geometry& geometry, float offset, uint64_t seed = 1) {
  Random random(seed);
  Bytes raw;
  for (const LayerGeometry& layer : geometry.layers) {
    for (uint32_t t = 0; t < 2 * kBlockTokens; ++t) {
      const uint32_t channels = layer.ChannelsOf(t < kBlockTokens);
      std::vector<float> row(channels);
      for (uint32_t c = 0; c < channels; ++c)
        row[c] = offset + (1 + c % 3) * (1 + t % 2) * random.Normal();
      Bytes bytes(channels * DTypeBytes(layer.dtype));
      FromFloat(layer.dtype, row.data(), channels, bytes.data());
      raw.insert(raw.end(), bytes.begin(), bytes.end());
    }
  }
  return raw;
}

std::vector<float> Floats(const Geometry& geometry, const Bytes& raw) {
  std::vector<float> values(raw.size() / DTypeBytes(geometry.layers[0].dtype));
  ToFloat(geometry.layers[0].dtype, raw.data(), values.size(), values.data());
  return values;
}

double RelativeError(const Geometry& geometry, const Bytes& raw,
                     const Bytes& restored) {
  const std::vector<float> before = Floats(geometry, raw),
                           after = Floats(geometry, restored);
  double error = 0, energy = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    error += (before[i] - after[i]) * (before[i] - after[i]);
    energy += before[i] * before[i];
  }
  return std::sqrt(error / energy);
}

TEST(Scalar, AFinerStepIsCloserAndLarger) {
  for (DType dtype : kDTypes) {
    const Geometry geometry = SyntheticGeometry(dtype);
    const auto codec = *Codec::Create(geometry, nullptr);
    for (uint32_t first_token : {0, 64}) {
      const Bytes raw = Block(geometry, 0);
      double error_before = 1;
      size_t bytes_before = 0;
      for (float step : {1.0f, 0.5f, 0.25f}) {
        const Bytes frame =
            *codec->Encode(PlaceOf(kTokens, first_token), raw, At(step));
        const double error = RelativeError(
            geometry, raw,
            Restored(*codec, frame, PlaceOf(kTokens, first_token)));
        EXPECT_LT(error, step * 0.4);
        EXPECT_LT(error, error_before);
        EXPECT_GT(frame.size(), bytes_before);
        error_before = error;
        bytes_before = frame.size();
      }
    }
  }
}

TEST(Scalar, TheHeaderSaysHowAndWhatItCosts) {
  const Geometry geometry = SyntheticGeometry();
  const auto codec = *Codec::Create(geometry, nullptr);
  const FrameHeader header = *VerifyFrame(
      *codec->Encode(PlaceOf(kTokens), Block(geometry, 0), At(0.5f)));
  EXPECT_TRUE(header.encoding.IsScalar());
  EXPECT_EQ(header.encoding.ToString(), "scalar@0.5");
  EXPECT_EQ(header.encoding.step, 0.5f);
  EXPECT_EQ(header.loss_own, ScalarLoss(0.5f));
  EXPECT_EQ(header.sections.size(), geometry.layers.size());
}

TEST(Scalar, ACodecWithABasisReadsItToo) {
  const SyntheticModel model;
  const auto without = *Codec::Create(model.geometry(), nullptr);
  const Bytes frame =
      *without->Encode(PlaceOf(kTokens), Block(model.geometry(), 0), At(0.5f));
  EXPECT_EQ(Restored(model.codec(), frame, PlaceOf(kTokens)),
            Restored(*without, frame, PlaceOf(kTokens)));
}

TEST(Scalar, TheGuardHalvesTheStepAndEndsExact) {
  const Geometry geometry = SyntheticGeometry();
  const auto codec = *Codec::Create(geometry, nullptr);
  EncodeOptions options = At(1);
  options.loss_own_max = ScalarLoss(0.6f);
  EXPECT_EQ(
      VerifyFrame(*codec->Encode(PlaceOf(kTokens), Block(geometry, 0), options))
          ->encoding.step,
      0.5f);
  options.loss_own_max = ScalarLoss(0.1f);
  EXPECT_TRUE(
      VerifyFrame(*codec->Encode(PlaceOf(kTokens), Block(geometry, 0), options))
          ->encoding.IsExact());
}

TEST(Scalar, WhatCannotBeQuantizedIsExact) {
  const Geometry geometry = SyntheticGeometry(DType::kFp32);
  const auto codec = *Codec::Create(geometry, nullptr);
  const float kBad[] = {std::numeric_limits<float>::infinity(),
                        std::numeric_limits<float>::quiet_NaN(), 3e38f};
  for (const float bad : kBad) {
    for (const size_t token : {0, 50}) {
      for (const uint32_t part : {0, 1}) {
        Bytes raw = Block(geometry, 0);
        const size_t row = geometry.layers[0].ChannelsOf(true) * sizeof(float);
        std::memcpy(raw.data() + (part * kBlockTokens + token) * row, &bad,
                    sizeof(bad));
        const Bytes frame = *codec->Encode(PlaceOf(kTokens), raw, At(0.5f));
        // A sink may be as large as it likes.
        const bool held = std::isfinite(bad) && token == 0;
        EXPECT_EQ(VerifyFrame(frame)->encoding.IsExact(), !held)
            << bad << " at " << token;
        if (!held) {
          EXPECT_EQ(Restored(*codec, frame, PlaceOf(kTokens)), raw);
        }
      }
    }
  }
}

TEST(Scalar, KeysFarFromZeroAndBlocksOfNothingComeBack) {
  Geometry geometry = SyntheticGeometry(DType::kFp32);
  for (LayerGeometry& layer : geometry.layers) {
    layer.pairing = RotaryPairing::kNone;
    layer.rotary_dim = 0;
    layer.inverse_frequencies.clear();
  }
  const auto codec = *Codec::Create(geometry, nullptr);
  const Bytes far = Block(geometry, 500),
              nothing(RawBytes(geometry, kBlockTokens));
  const auto back = [&](const Bytes& raw) {
    return Restored(*codec,
                    *codec->Encode(PlaceOf(kTokens, 64), raw, At(0.25f)),
                    PlaceOf(kTokens, 64));
  };
  EXPECT_LT(RelativeError(geometry, far, back(far)), 0.2);
  EXPECT_EQ(back(nothing), nothing);
}

TEST(Scalar, LayersOfOddShapesComeBack) {
  Geometry geometry;
  for (uint32_t heads : {1, 3}) {
    for (uint32_t dims : {1, 5, 66}) {
      LayerGeometry layer;
      layer.kv_heads = heads;
      layer.head_dim = dims;
      layer.dtype = DType::kFp32;
      geometry.layers.push_back(layer);
    }
  }
  const auto codec = *Codec::Create(geometry, nullptr);
  const Bytes raw = Block(geometry, 0);
  const Bytes frame = *codec->Encode(PlaceOf(kTokens), raw, At(0.1f));
  EXPECT_TRUE(VerifyFrame(frame)->encoding.IsScalar());
  EXPECT_LT(
      RelativeError(geometry, raw, Restored(*codec, frame, PlaceOf(kTokens))),
      0.05);
}

}  // namespace
}  // namespace latentkv
