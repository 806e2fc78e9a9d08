// What is written of a block that is over its bound of loss.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "codec/scalar_codec.h"
#include "core/limits.h"
#include "tests/codec/basis_frames.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
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
  EXPECT_NEAR(header.loss_own, surprise * ErrorOf(Model(), 64, raw, restored),
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
                ErrorOf(Model(), 64, raw, Restored(*plain, frame, place)) <=
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

}  // namespace
}  // namespace latentkv
