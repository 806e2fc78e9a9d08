#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "codec/basis.h"
#include "codec/codec.h"
#include "core/checksum.h"
#include "tests/codec/blocks.h"

namespace latentkv {
namespace {

constexpr uint32_t kFirst = 64;  // Not a chain's first block: no sinks.

// Two layers of one head of 8; every channel is a latent of its own, of 1/64 a unit of the decoder.
class BasisFrame : public ::testing::Test {
 protected:
  BasisFrame() {
    BasisGroup group;
    group.last_layer = 2;
    const uint32_t n = group.channels = group.rank = 32;
    group.mean.assign(n, 0);
    group.row_scale.assign(n, 1.0f / 64);
    group.weight.assign(n, 1);
    group.sensitivity.assign(n, 1e-3f);
    group.latent_scale.assign(n, 1);
    group.decoder.assign(n * n, 0);
    for (uint32_t i = 0; i < n; ++i) group.decoder[i * n + i] = 64;
    basis_ = *Basis::Create(geometry_, {group}, {{"balanced", 0.125f, 1}}, "a test");
    codec_ = *Codec::Create(geometry_, basis_);
  }
  absl::StatusOr<Bytes> Encode(const Bytes& raw, float step, float loss_own_max = 0, uint32_t first = kFirst) const {
    return codec_->Encode(TestKey(), first, raw, {false, step, loss_own_max, 0});
  }
  Bytes Restored(const Bytes& frame, uint32_t first = kFirst) const {
    Bytes raw(RawBytes(geometry_, kBlockTokens), 0xa5);
    const absl::Status status = RestoreInto(*codec_, frame, first, &raw);
    EXPECT_TRUE(status.ok()) << status;
    return raw;
  }
  // Largest and mean square difference.
  static std::pair<float, float> Difference(const Bytes& a, const Bytes& b) {
    std::vector<float> x(a.size() / 4), y(b.size() / 4);
    std::memcpy(x.data(), a.data(), a.size());
    std::memcpy(y.data(), b.data(), b.size());
    float largest = 0, squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::fabs(x[i] - y[i]));
      squares += (x[i] - y[i]) * (x[i] - y[i]);
    }
    return {largest, squares / x.size()};
  }
  void Set(Bytes* raw, size_t at, float value) const { std::memcpy(raw->data() + 4 * at, &value, 4); }

  const Geometry geometry_ = Plain(2, 1, 8, DType::kFp32);
  const Bytes raw_ = GaussianBlock(geometry_, 1);
  std::shared_ptr<const Basis> basis_;
  std::unique_ptr<Codec> codec_;
};

TEST_F(BasisFrame, RestoresWithinHalfAStepAndStatesItsLoss) {
  const Bytes frame = *Encode(raw_, 0.125f);
  const auto [largest, square] = Difference(raw_, Restored(frame));
  EXPECT_LE(largest, 0.0625f * 1.001f);
  EXPECT_GT(largest, 0.05f);
  const FrameHeader header = *VerifyFrame(frame);
  EXPECT_EQ(header.encoding, (Encoding{basis_->digest(), 0.125f}));
  EXPECT_NEAR(header.loss_own, 32 * 1e-3f * square, 0.01f * header.loss_own);
}

TEST_F(BasisFrame, AFinerStepIsCloserAndLarger) {
  const Bytes coarse = *Encode(raw_, 0.25f), fine = *Encode(raw_, 0.0625f);
  EXPECT_LT(coarse.size(), fine.size());
  EXPECT_GT(Difference(raw_, Restored(coarse)).second, 4 * Difference(raw_, Restored(fine)).second);
}

TEST_F(BasisFrame, TheGuardHalvesTheStepTwiceAndThenIsExact) {
  const float loss = VerifyFrame(*Encode(raw_, 0.125f))->loss_own;
  // Half the step leaves a quarter of the loss.
  const float bounds[] = {1.1f, 0.5f, 0.1f, 0.01f};
  const float steps[] = {0.125f, 0.0625f, 0.03125f, 0};
  for (int i = 0; i < 4; ++i) {
    const Bytes frame = *Encode(raw_, 0.125f, bounds[i] * loss);
    EXPECT_EQ(VerifyFrame(frame)->encoding.step, steps[i]);
    if (steps[i] == 0) {
      EXPECT_EQ(Restored(frame), raw_);
    }
  }
}

TEST_F(BasisFrame, ATokenBeyondTheBoundsComesBackToTheBit) {
  Bytes raw = raw_;
  Set(&raw, 8 * 5 + 3, 1000);  // Layer 0, K, token 5.
  const Bytes restored = Restored(*Encode(raw, 0.125f));
  float value;
  std::memcpy(&value, restored.data() + 4 * (8 * 5 + 3), 4);
  EXPECT_EQ(value, 1000);
  for (size_t part = 0; part < 4; ++part) {
    const size_t at = (part * kBlockTokens + 5) * 8 * 4;
    EXPECT_EQ(std::memcmp(restored.data() + at, raw.data() + at, 32), 0) << part;
  }
  EXPECT_NE(restored, raw);
}

TEST_F(BasisFrame, ABlockThatIsNotFiniteBecomesExact) {
  for (float value : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Bytes raw = raw_;
    Set(&raw, 100, value);
    const Bytes frame = *Encode(raw, 0.125f);
    EXPECT_TRUE(VerifyFrame(frame)->encoding.IsExact());
    EXPECT_EQ(Restored(frame), raw);
  }
}

TEST_F(BasisFrame, SinksKeepEightBits) {
  Bytes raw = raw_;
  for (size_t token = 0; token < kSinkTokens; ++token) Set(&raw, token * 8, 500);
  const Bytes restored = Restored(*Encode(raw, 0.125f, 0, 0), 0);
  for (size_t token = 0; token < kSinkTokens; ++token) {
    for (size_t dim = 0; dim < 8; ++dim) {
      float a, b;
      std::memcpy(&a, raw.data() + 4 * (token * 8 + dim), 4);
      std::memcpy(&b, restored.data() + 4 * (token * 8 + dim), 4);
      EXPECT_NEAR(a, b, 500.0f / 127 / 2 * 1.001f);
    }
  }
}

TEST_F(BasisFrame, RefusesStepsAndBoundsThatAreNone) {
  for (float bad : {-1.0f, std::nanf("")}) {
    EXPECT_EQ(Encode(raw_, bad).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Encode(raw_, 0.125f, bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(Encode(raw_, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Encode(raw_, INFINITY).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BasisFrame, RefusesAnotherKeyPositionGeometryOrBasis) {
  const FrameHeader header = *VerifyFrame(*Encode(raw_, 0.125f));
  EXPECT_TRUE(codec_->Check(header, TestKey(), kFirst).ok());
  const auto refused = [&](const Codec& codec, const Digest& key, uint32_t first) {
    return absl::IsFailedPrecondition(codec.Check(header, key, first));
  };
  EXPECT_TRUE(refused(*codec_, Digest{}, kFirst));
  EXPECT_TRUE(refused(*codec_, TestKey(), 0));
  EXPECT_TRUE(refused(**Codec::Create(geometry_, nullptr), TestKey(), kFirst));
  EXPECT_TRUE(refused(**Codec::Create(Plain(2, 1, 8, DType::kBf16), nullptr), TestKey(), kFirst));
  EXPECT_EQ(Codec::Create(Plain(2, 1, 8, DType::kBf16), basis_).status().code(), absl::StatusCode::kInvalidArgument);
}

// A changed payload under right checksums: decoded or refused, and then no page is touched.
TEST_F(BasisFrame, ForgedPayloadsNeverTouchAPageWhenRefused) {
  const Bytes frame = *Encode(raw_, 0.125f);
  const FrameHeader header = *VerifyFrame(frame);
  Random random(9);
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    Bytes section(frame.begin() + header.sections[0].offset, frame.end());
    for (uint32_t changes = 1 + random.Below(3); changes > 0; --changes) {
      section[random.Below(round % 2 == 0 ? 16 : section.size())] = static_cast<uint8_t>(random.Bits());
    }
    if (round % 5 == 0) section.resize(random.Below(section.size()));
    const Bytes forged = *WriteFrame(header, {section});
    const Bytes poison(RawBytes(geometry_, kBlockTokens), 0xa5);
    Bytes raw = poison;
    const absl::Status status = RestoreInto(*codec_, forged, kFirst, &raw);
    if (status.ok()) continue;
    ++refused;
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    ASSERT_EQ(raw, poison);
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace latentkv
