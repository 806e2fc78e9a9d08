// What a frame in a basis holds and restores: loss, steps, tokens that latents
// cannot hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "core/limits.h"
#include "tests/codec/basis_frames.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

// The bytes of one token in the raw form, all layers.
Bytes TokenOf(const Geometry& geometry, const Bytes& raw, uint32_t token) {
  Bytes values;
  size_t part = 0;
  for (const LayerGeometry& layer : geometry.layers) {
    for (const bool keys : {true, false}) {
      const size_t row =
          size_t{layer.ChannelsOf(keys)} * DTypeBytes(layer.dtype);
      values.insert(values.end(), raw.begin() + part + token * row,
                    raw.begin() + part + (token + 1) * row);
      part += row * kBlockTokens;
    }
  }
  return values;
}

TEST(BasisFrame, RestoresAsCloseAsItsHeaderSays) {
  const std::vector<uint32_t> tokens = Model().Tokens(3 * kBlockTokens);
  for (uint32_t first_token : {0, 64, 128}) {
    const Bytes raw = Model().Block(tokens, first_token);
    for (float step : {0.5f, 1.0f, 3.0f, 9.0f}) {
      const Bytes frame =
          Encoded(Model(), PlaceOf(tokens, first_token), raw, AtStep(step));
      const FrameHeader header = *VerifyFrame(frame);
      EXPECT_EQ(header.encoding, (Encoding{Model().basis()->digest(), step}));
      const Bytes restored =
          Restored(Model().codec(), frame, PlaceOf(tokens, first_token));
      ASSERT_EQ(restored.size(), raw.size());
      // The engine's type rounds once more than the header knows.
      EXPECT_NEAR(ErrorOf(Model(), first_token, raw, restored) *
                      SurpriseOf(Model(), frame) / header.loss_own,
                  1, 0.03)
          << "step " << step;
    }
  }
}

TEST(BasisFrame, AFinerStepIsCloserAndLarger) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  float loss_before = std::numeric_limits<float>::infinity();
  size_t bytes_before = 0;
  for (float step : {8.0f, 4.0f, 2.0f, 1.0f, 0.5f}) {
    const Bytes frame =
        Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(step));
    const float loss = VerifyFrame(frame)->loss_own;
    EXPECT_LT(loss, 0.5f * loss_before) << "step " << step;
    EXPECT_GT(frame.size(), bytes_before) << "step " << step;
    loss_before = loss;
    bytes_before = frame.size();
  }
  // Far below exact even at the finest.
  EXPECT_LT(8 * bytes_before, 3 * raw.size());
}

TEST(BasisFrame, EveryTypeOfTheEngineIsRestored) {
  for (DType dtype : {DType::kFp16, DType::kFp32, DType::kFp8E4M3}) {
    const SyntheticModel model({dtype});
    const std::vector<uint32_t> tokens = model.Tokens(kBlockTokens);
    const Bytes raw = model.Block(tokens, 0);
    const Bytes frame = Encoded(model, PlaceOf(tokens), raw, AtStep(1));
    const Bytes restored = Restored(model.codec(), frame, PlaceOf(tokens));
    ASSERT_EQ(restored.size(), raw.size());
    // A value of fp8 is off by a thirty-second part of itself at worst: more
    // than the step's error here.
    const double factor = dtype == DType::kFp8E4M3 ? 3 : 1.02;
    EXPECT_LT(ErrorOf(model, 0, raw, restored),
              factor * VerifyFrame(frame)->loss_own)
        << static_cast<int>(dtype);
  }
}

TEST(BasisFrame, TheSameBlockGivesTheSameFrame) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const Bytes raw = Model().Block(tokens, 0);
  EXPECT_EQ(Encoded(Model(), PlaceOf(tokens), raw, AtStep(1)),
            Encoded(Model(), PlaceOf(tokens), raw, AtStep(1)));
}

TEST(BasisFrame, TokensThatLatentsCannotHoldComeBackToTheBit) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  Bytes raw = Model().Block(tokens, 64);
  // Two tokens with values 200 times as large, and those around them as they
  // were.
  for (uint32_t token : {0, 40}) {
    for (size_t part = 0; part < raw.size(); part += 64 * kBlockTokens) {
      for (size_t at = part + token * 64; at < part + (token + 1) * 64;
           at += 2) {
        uint32_t bits = 0;
        std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, raw.data() + at, 2);
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        value *= 200;
        std::memcpy(raw.data() + at,
                    reinterpret_cast<const uint8_t*>(&value) + 2, 2);
      }
    }
  }
  const Bytes frame = Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(1));
  for (uint32_t section : {0, 1}) {
    EXPECT_EQ(ReadSection(Model(), frame, section).exact_tokens,
              (std::vector<uint8_t>{0, 40}));
  }
  const Bytes restored = Restored(Model().codec(), frame, PlaceOf(tokens, 64));
  for (uint32_t token : {0, 40}) {
    EXPECT_EQ(TokenOf(Model().geometry(), restored, token),
              TokenOf(Model().geometry(), raw, token));
  }
  EXPECT_NEAR(ErrorOf(Model(), 64, raw, restored) * SurpriseOf(Model(), frame) /
                  VerifyFrame(frame)->loss_own,
              1, 0.02);
}

TEST(BasisFrame, AStepFarTooFineStoresEveryTokenExact) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  for (float step : {1e-4f, std::numeric_limits<float>::denorm_min()}) {
    const Bytes frame =
        Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(step));
    EXPECT_EQ(Restored(Model().codec(), frame, PlaceOf(tokens, 64)), raw)
        << step;
    EXPECT_EQ(VerifyFrame(frame)->loss_own, 0);
  }
}

TEST(BasisFrame, AStepFarTooCoarseLeavesThePrediction) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  for (float step : {1e4f, std::numeric_limits<float>::max()}) {
    const Bytes frame =
        Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(step));
    for (uint32_t section : {0, 1}) {
      EXPECT_THAT(ReadSection(Model(), frame, section).latents,
                  testing::Each(0));
    }
    EXPECT_NEAR(ErrorOf(Model(), 64, raw,
                        Restored(Model().codec(), frame, PlaceOf(tokens, 64))) /
                    VerifyFrame(frame)->loss_own,
                1, 0.02);
  }
}

TEST(BasisFrame, ABlockThatIsNotFiniteBecomesExact) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  for (uint16_t bits : {0x7f80, 0xff80, 0x7fc1}) {
    for (size_t at : {size_t{0}, Model().Block(tokens, 0).size() - 2}) {
      Bytes raw = Model().Block(tokens, 0);
      std::memcpy(raw.data() + at, &bits, sizeof(bits));
      const Bytes frame = Encoded(Model(), PlaceOf(tokens), raw, AtStep(1));
      EXPECT_TRUE(VerifyFrame(frame)->encoding.IsExact());
      EXPECT_EQ(VerifyFrame(frame)->loss_own, 0);
      EXPECT_EQ(Restored(Model().codec(), frame, PlaceOf(tokens)), raw);
    }
  }
}

TEST(BasisFrame, TheLargestFiniteValueMakesItsTokenExactAndNoOther) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  Bytes raw = Model().Block(tokens, 64);
  const size_t token_bytes = 64, part_bytes = token_bytes * kBlockTokens;
  // In V of layer 2, which is of the second group.
  const size_t at = 5 * part_bytes + 20 * token_bytes + 6;
  const uint16_t largest = 0x7f7f;
  std::memcpy(raw.data() + at, &largest, sizeof(largest));
  const Bytes frame = Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(1));
  EXPECT_THAT(ReadSection(Model(), frame, 0).exact_tokens, testing::IsEmpty());
  EXPECT_THAT(ReadSection(Model(), frame, 1).exact_tokens,
              testing::ElementsAre(20));
  const Bytes restored = Restored(Model().codec(), frame, PlaceOf(tokens, 64));
  ASSERT_EQ(restored.size(), raw.size());
  EXPECT_EQ(std::memcmp(restored.data() + at, &largest, sizeof(largest)), 0);
}

// As of a device, whose frames have room for the header.
TEST(BasisFrame, ItsLengthsSayWhatAnErrorCosts) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  bool some_escape = false;
  for (uint32_t first_token : {0, 64}) {
    for (const Bytes& raw : {Model().Block(tokens, first_token),
                             DrawBlock(Model().geometry(), 5)}) {
      for (float step : {0.04f, 1.0f}) {
        const Bytes frame =
            Encoded(Model(), PlaceOf(tokens, first_token), raw, AtStep(step));
        const FrameHeader header = *VerifyFrame(frame);
        std::vector<uint64_t> lengths;
        for (size_t g = 0; g < header.sections.size(); ++g) {
          lengths.push_back(header.sections[g].bytes);
          some_escape |= EscapeBytes(frame, g) > 0;
        }
        const double surprise = SurpriseOf(Model(), frame);
        EXPECT_NEAR(Model().codec().SurpriseOf(first_token, step, lengths,
                                               frame.data()),
                    surprise, 1e-4 * surprise);
      }
    }
  }
  EXPECT_TRUE(some_escape);
  // What the basis does not foresee costs more.
  const auto surprise_of = [&](const Bytes& raw) {
    return SurpriseOf(Model(),
                      Encoded(Model(), PlaceOf(tokens, 64), raw, AtStep(1)));
  };
  EXPECT_GT(surprise_of(DrawBlock(Model().geometry(), 5)),
            1.1 * surprise_of(Model().Block(tokens, 64)));
}

TEST(Encode, RefusesWhatItCannotWrite) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const Bytes raw = Model().Block(tokens, 64);
  const auto code = [&](const Codec& codec, const BlockPlace& place,
                        const EncodeOptions& options) {
    return codec.Encode(place, raw, options).status().code();
  };
  const BlockPlace place = PlaceOf(tokens, 64);
  ASSERT_EQ(code(Model().codec(), place, AtStep(1)), absl::StatusCode::kOk);
  for (float step : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                     std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(code(Model().codec(), place, AtStep(step)),
              absl::StatusCode::kInvalidArgument)
        << step;
  }
  EncodeOptions options = AtStep(1);
  options.loss_inherited = -1;
  EXPECT_EQ(code(Model().codec(), place, options),
            absl::StatusCode::kInvalidArgument);
  BlockPlace short_of_tokens = place;
  short_of_tokens.tokens.remove_suffix(1);
  EXPECT_EQ(code(Model().codec(), short_of_tokens, AtStep(1)),
            absl::StatusCode::kInvalidArgument);
  BlockPlace between_blocks = place;
  between_blocks.first_token = 63;
  between_blocks.tokens.remove_suffix(1);
  EXPECT_EQ(code(Model().codec(), between_blocks, AtStep(1)),
            absl::StatusCode::kInvalidArgument);
}

TEST(CodecCreate, RefusesABasisOfAnotherGeometryAndNamesIt) {
  const absl::Status status =
      Codec::Create(SyntheticGeometry(DType::kFp16), Model().basis()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("a synthetic model"));
  EXPECT_EQ(Codec::Create(Geometry(), nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CodecCreate, SectionsAreLayersOfExactFramesAndGroupsOfOthers) {
  const Codec& codec = Model().codec();
  const Encoding encoding = {Model().basis()->digest(), 1};
  ASSERT_EQ(codec.SectionCount(Encoding::Exact()), 4u);
  ASSERT_EQ(codec.SectionCount(encoding), 2u);
  EXPECT_EQ(codec.SectionLayers(Encoding::Exact(), 3), std::make_pair(3u, 4u));
  EXPECT_EQ(codec.SectionLayers(encoding, 1), std::make_pair(2u, 4u));
}

}  // namespace
}  // namespace latentkv
