// What a frame in a basis holds and restores: loss, steps, the guard, tokens
// that latents cannot hold.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "codec/latent_model.h"
#include "codec/scalar_codec.h"
#include "core/limits.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

EncodeOptions AtStep(float step, float loss_own_max = 0) {
  EncodeOptions options;
  options.exact = false;
  options.step = step;
  options.loss_own_max = loss_own_max;
  return options;
}

Bytes Encoded(const SyntheticModel& model, const BlockPlace& place,
              const Bytes& raw, const EncodeOptions& options) {
  const auto frame = model.codec().Encode(place, raw, options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *frame : Bytes();
}

// Of section `index`, whose first eight bytes end in their count.
double EscapeBytes(const Bytes& frame, size_t index) {
  uint32_t count = 0;
  const uint64_t at = VerifyFrame(frame)->sections[index].offset + 4;
  std::memcpy(&count, frame.data() + at, sizeof(count));
  return 6.0 * count;
}

// What the loss of a frame is of its error (docs/formats/basis.md): the power
// 3/2 of the bits of its latents over those that their scales make expect.
double SurpriseOf(const SyntheticModel& model, const Bytes& frame) {
  const FrameHeader header = *VerifyFrame(frame);
  const LatentTables tables = MakeLatentTables();
  double actual = 0, expected = 0;
  for (size_t g = 0; g < header.sections.size(); ++g) {
    const LatentSection section = ReadSection(model, frame, g);
    actual += 8.0 * (header.sections[g].bytes - 8.0 -
                     section.exact_tokens.size() - section.exact_values.size() -
                     section.sinks.size() - 128 - EscapeBytes(frame, g));
    double token_bits = 0;
    for (const float scale : model.basis()->groups()[g].latent_scale) {
      const uint32_t c = LatentClass(scale, header.encoding.step);
      if (c < 16) continue;  // Not live.
      for (const uint16_t frequency : tables.tables[c].frequency) {
        if (frequency > 0)
          token_bits += frequency / 4096.0 * std::log2(4096.0 / frequency);
      }
    }
    expected += token_bits * (kBlockTokens - section.exact_tokens.size() -
                              (header.first_token == 0 ? kSinkTokens : 0));
  }
  return std::pow(std::clamp(actual / expected, 0.25, 4.0), 1.5);
}

// The divergence that the sensitivities expect of what `restored` differs from
// `raw` by, nats a token.
double LossOf(const SyntheticModel& model, uint32_t first_token,
              const Bytes& raw, const Bytes& restored) {
  double loss = 0;
  for (const BasisGroup& group : model.basis()->groups()) {
    const std::vector<float> before =
        ChannelsOf(model.geometry(), group, first_token, raw);
    const std::vector<float> after =
        ChannelsOf(model.geometry(), group, first_token, restored);
    for (size_t i = first_token == 0 ? kSinkTokens * group.channels : 0;
         i < before.size(); ++i) {
      const double error = before[i] - after[i];
      loss +=
          group.sensitivity[i % group.channels] * error * error / kBlockTokens;
    }
  }
  return loss;
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
      EXPECT_NEAR(LossOf(Model(), first_token, raw, restored) *
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
    EXPECT_LT(LossOf(model, 0, raw, restored),
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
  EXPECT_NEAR(LossOf(Model(), 64, raw, restored) * SurpriseOf(Model(), frame) /
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
    EXPECT_NEAR(LossOf(Model(), 64, raw,
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

TEST(Guard, ABlockOverItsBoundClimbsToHalfTheStepThenAQuarterThenExact) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const BlockPlace place = PlaceOf(tokens);
  const Bytes raw = Model().Block(tokens, 0);
  // At every step its text is as surprising as it is at the first.
  float loss[3];
  double surprise = 0;
  for (int i = 0; i < 3; ++i) {
    const Bytes frame =
        Encoded(Model(), place, raw, AtStep(std::ldexp(4.0f, -i)));
    if (i == 0) surprise = SurpriseOf(Model(), frame);
    loss[i] = static_cast<float>(VerifyFrame(frame)->loss_own *
                                 (surprise / SurpriseOf(Model(), frame)));
  }
  EXPECT_GT(
      std::abs(
          loss[1] /
              VerifyFrame(Encoded(Model(), place, raw, AtStep(2)))->loss_own -
          1),
      0.01);
  const auto at_bound = [&](float loss_own_max) {
    EncodeOptions options = AtStep(4, loss_own_max);
    options.loss_inherited = 0.5f;
    return *VerifyFrame(Encoded(Model(), place, raw, options));
  };
  EXPECT_EQ(at_bound(1.001f * loss[0]).encoding.step, 4);
  EXPECT_EQ(at_bound(0.999f * loss[0]).encoding.step, 2);
  EXPECT_FLOAT_EQ(at_bound(0.999f * loss[0]).loss_own, loss[1]);
  EXPECT_FLOAT_EQ(at_bound(0.999f * loss[0]).loss_chain, loss[1] + 0.5f);
  EXPECT_EQ(at_bound(0.999f * loss[1]).encoding.step, 1);
  EXPECT_FLOAT_EQ(at_bound(0.999f * loss[1]).loss_own, loss[2]);
  const FrameHeader exact = at_bound(0.999f * loss[2]);
  EXPECT_TRUE(exact.encoding.IsExact());
  EXPECT_EQ(exact.sections.size(), 4u);
  EXPECT_EQ(exact.loss_own, 0);
  EXPECT_EQ(exact.loss_chain, 0.5f);
  // What was tried at coarser steps leaves no trace.
  EXPECT_EQ(
      SectionsOf(Encoded(Model(), place, raw, AtStep(4, 0.999f * loss[0]))),
      SectionsOf(Encoded(Model(), place, raw, AtStep(2))));
}

// Text that the basis knows nothing of: values that no latents of it reach.
TEST(Guard, ABlockThatNoStepHoldsNeedsNoBasisAndSaysWhatItCosts) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const BlockPlace place = PlaceOf(tokens, 64);
  const Bytes raw = DrawBlock(Model().geometry(), 5);
  const float finest =
      VerifyFrame(Encoded(Model(), place, raw, AtStep(0.25f)))->loss_own;
  const Bytes frame = Encoded(Model(), place, raw, AtStep(1, finest / 2));
  const FrameHeader header = *VerifyFrame(frame);
  EXPECT_EQ(header.encoding, (Encoding{ScalarQuantizer(), kScalarStep}));
  EXPECT_LE(header.loss_own, finest / 2);
  const Bytes restored = Restored(Model().codec(), frame, place);
  // Of text that surprises as it did in the basis.
  const double surprise =
      SurpriseOf(Model(), Encoded(Model(), place, raw, AtStep(1)));
  EXPECT_NEAR(header.loss_own, surprise * LossOf(Model(), 64, raw, restored),
              1e-3 * header.loss_own);
  EXPECT_LT(frame.size(),
            Encoded(Model(), place, raw, EncodeOptions()).size() / 2);
  // Finer steps, then exact, as in a basis.
  const auto at_bound = [&](float loss_own_max) {
    return VerifyFrame(Encoded(Model(), place, raw, AtStep(1, loss_own_max)))
        ->encoding;
  };
  EXPECT_EQ(at_bound(0.999f * header.loss_own),
            (Encoding{ScalarQuantizer(), kScalarStep / 2}));
  EXPECT_TRUE(at_bound(0.01f * header.loss_own).IsExact());
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

TEST(Guard, ALossThatNoHeaderHoldsIsOverEveryBound) {
  SyntheticOptions options;
  options.embedding = false;
  options.inherited_rank = 0;
  const BasisParts parts = SyntheticParts(options);
  // Alike in all tokens, so that none is over it before their mean is: keys of
  // zero, which do not rotate, and the values of one token.
  const Bytes drawn = DrawBlock(parts.geometry, 5);
  Bytes raw(drawn.size());
  size_t at = 0;
  for (const LayerGeometry& layer : parts.geometry.layers) {
    const size_t row = size_t{layer.ChannelsOf(false)} * sizeof(uint16_t);
    at += size_t{layer.ChannelsOf(true)} * sizeof(uint16_t) * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t, at += row)
      std::copy_n(drawn.begin() + at - t * row + 9 * row, row,
                  raw.begin() + at);
  }
  const std::vector<uint32_t> tokens(2 * kBlockTokens, 1);
  const auto encoded = [&](double sensitivity) {
    BasisParts sensitive = parts;
    for (BasisGroup& group : sensitive.groups)
      std::fill(group.sensitivity.begin(), group.sensitivity.end(),
                static_cast<float>(sensitivity));
    const auto basis = *Basis::Create(std::move(sensitive));
    const auto codec = *Codec::Create(basis->geometry(), basis);
    const auto frame = codec->Encode(PlaceOf(tokens, 64), raw, AtStep(1));
    EXPECT_TRUE(frame.ok()) << frame.status();
    return frame.ok() ? *VerifyFrame(*frame) : FrameHeader();
  };
  const FrameHeader small = encoded(1);
  ASSERT_GT(small.loss_own, 0);
  const double largest = std::numeric_limits<float>::max() / small.loss_own;
  EXPECT_EQ(encoded(0.9 * largest).encoding.step, 1);
  EXPECT_NE(encoded(1.1 * largest).encoding.step, 1);
}

TEST(Guard, OfWhatKeepsToTheBoundTheSmallestIsTaken) {
  const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  const BlockPlace place = PlaceOf(tokens, 64);
  const auto plain = *Codec::Create(Model().geometry(), nullptr);
  const Bytes strange = DrawBlock(Model().geometry(), 5);
  constexpr float kStep = 0.2f;
  int in_basis = 0, smaller = 0, scalar_alone = 0;
  // Every so many values the basis knows nothing of.
  for (int every : {1, 8, 64, 512}) {
    Bytes raw = Model().Block(tokens, 64);
    for (size_t i = 0; i < raw.size(); i += 2 * every)
      std::copy_n(strange.begin() + i, 2, raw.begin() + i);
    const Bytes coarse = Encoded(Model(), place, raw, AtStep(kStep));
    const double surprise = SurpriseOf(Model(), coarse);
    const float first = VerifyFrame(coarse)->loss_own;
    for (float share : {0.9f, 0.5f, 0.1f, 0.02f}) {
      const float bound = share * first;
      // The first step of each that keeps to it.
      Bytes basis_frame, scalar_frame;
      for (int i = 2; i >= 1; --i) {
        const Bytes frame =
            Encoded(Model(), place, raw, AtStep(std::ldexp(kStep, -i)));
        if (VerifyFrame(frame)->loss_own * surprise /
                SurpriseOf(Model(), frame) <=
            bound) {
          basis_frame = frame;
        }
      }
      for (int i = 2; i >= 0; --i) {
        const Bytes frame =
            *plain->Encode(place, raw, AtStep(std::ldexp(kScalarStep, -i)));
        if (surprise *
                LossOf(Model(), 64, raw, Restored(*plain, frame, place)) <=
            bound) {
          scalar_frame = frame;
        }
      }
      const Bytes frame = Encoded(Model(), place, raw, AtStep(kStep, bound));
      const bool exact = basis_frame.empty() && scalar_frame.empty();
      const bool takes_basis =
          !basis_frame.empty() &&
          (scalar_frame.empty() || basis_frame.size() <= scalar_frame.size());
      ASSERT_EQ(VerifyFrame(frame)->encoding.IsExact(), exact);
      if (exact) continue;
      EXPECT_EQ(SectionsOf(frame),
                SectionsOf(takes_basis ? basis_frame : scalar_frame))
          << every << " " << share;
      in_basis += takes_basis;
      scalar_alone += basis_frame.empty();
      smaller += !takes_basis && !basis_frame.empty();
    }
  }
  EXPECT_GT(in_basis, 0);
  EXPECT_GT(scalar_alone, 0);
  EXPECT_GT(smaller, 0);
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
