#include "codec/sinks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/limits.h"
#include "kernels/rotary.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

EncodeOptions AtStepOne() {
  EncodeOptions options;
  options.exact = false;
  options.step = 1;
  return options;
}

// The values of the sinks in the order of the raw form; keys as the engine
// holds them.
std::vector<float> SinkValues(const Geometry& geometry, const Bytes& raw) {
  std::vector<float> values;
  size_t part = 0;
  for (const LayerGeometry& layer : geometry.layers) {
    const size_t element = DTypeBytes(layer.dtype);
    for (const bool keys : {true, false}) {
      const size_t count = kSinkTokens * layer.ChannelsOf(keys);
      values.resize(values.size() + count);
      ToFloat(layer.dtype, raw.data() + part, count,
              values.data() + values.size() - count);
      part += element * layer.ChannelsOf(keys) * kBlockTokens;
    }
  }
  return values;
}

// `raw` with every sink value times `factor`.
Bytes WithSinksTimes(const Geometry& geometry, const Bytes& raw, float factor) {
  Bytes changed = raw;
  std::vector<float> values = SinkValues(geometry, raw);
  for (float& value : values) value *= factor;
  const float* next = values.data();
  uint8_t* part = changed.data();
  for (const LayerGeometry& layer : geometry.layers) {
    for (const bool keys : {true, false}) {
      FromFloat(layer.dtype, next, kSinkTokens * layer.ChannelsOf(keys), part);
      next += kSinkTokens * layer.ChannelsOf(keys);
      part += DTypeBytes(layer.dtype) * layer.ChannelsOf(keys) * kBlockTokens;
    }
  }
  return changed;
}

TEST(Sinks, AreWithinEightBitsOfTheirHeadsLargestValue) {
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    const Geometry geometry = SyntheticGeometry(dtype);
    Random random(1);
    Bytes raw(RawBytes(geometry, kBlockTokens));
    for (size_t at = 0; at < raw.size(); at += DTypeBytes(dtype)) {
      const float value = random.Laplace() * random.Between(0.1f, 20);
      FromFloat(dtype, &value, 1, raw.data() + at);
    }
    const Bytes sinks = WriteSinks(geometry, 0, 4, raw);
    EXPECT_EQ(sinks.size(), SinkBytes(geometry, 0, 4));
    EXPECT_TRUE(SinksMatch(geometry, 0, 4, sinks, raw));
    Bytes restored(raw.size());
    ReadSinks(geometry, 0, 4, sinks, absl::MakeSpan(restored));
    const std::vector<float> before = SinkValues(geometry, raw),
                             after = SinkValues(geometry, restored);
    for (size_t head = 0; head < before.size(); head += 16) {
      float largest = 0;
      for (size_t i = head; i < head + 16; ++i)
        largest = std::max(largest, std::fabs(before[i]));
      // Half a step of 8 bits, and what the engine's type rounds on the way
      // back.
      for (size_t i = head; i < head + 16; ++i)
        EXPECT_NEAR(before[i], after[i], largest * (0.5 / 127 + 1.0 / 256));
    }
  }
}

TEST(Sinks, AHeadOfZerosAndOneOfTheSmallestValuesAreRestored) {
  const Geometry geometry = SyntheticGeometry(DType::kFp32);
  Bytes raw(RawBytes(geometry, kBlockTokens));
  const float smallest = std::numeric_limits<float>::denorm_min();
  std::copy_n(reinterpret_cast<const uint8_t*>(&smallest), sizeof(smallest),
              raw.begin() + 4);
  Bytes restored(raw.size(), 1);
  ReadSinks(geometry, 0, 4, WriteSinks(geometry, 0, 4, raw),
            absl::MakeSpan(restored));
  for (float value : SinkValues(geometry, restored))
    EXPECT_LE(std::fabs(value), 127 * smallest);
}

TEST(Sinks, FromFloatsAreThoseFromTheRawForm) {
  const Geometry geometry = SyntheticGeometry();
  const Bytes raw = Model().Block(Model().Tokens(kBlockTokens), 0);
  EXPECT_EQ(WriteSinks(geometry, SinkValues(geometry, raw).data()),
            WriteSinks(geometry, 0, 4, raw));
}

TEST(Sinks, AreTheBasissWhereAFewThousandthsDiffer) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const Bytes raw = Model().Block(tokens, 0),
              known = Model().basis()->sinks()[0].values;
  EXPECT_TRUE(SinksMatch(Model().geometry(), 0, 4, known, raw));
  EXPECT_TRUE(SinksMatch(Model().geometry(), 0, 4, known,
                         WithSinksTimes(Model().geometry(), raw, 1.02f)));
  EXPECT_FALSE(SinksMatch(Model().geometry(), 0, 4, known,
                          WithSinksTimes(Model().geometry(), raw, 1.05f)));
  // One layer's values are enough to tell.
  Bytes other = raw;
  const size_t part_bytes = 64 * kBlockTokens;
  std::fill_n(other.begin() + 7 * part_bytes, kSinkTokens * 64, 0);
  EXPECT_FALSE(SinksMatch(Model().geometry(), 0, 4, known, other));
}

TEST(Sinks, ThatTheBasisKnowsCostNothing) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const Bytes raw = Model().Block(tokens, 0);
  const Bytes frame =
      *Model().codec().Encode(PlaceOf(tokens), raw, AtStepOne());
  const Bytes different = WithSinksTimes(Model().geometry(), raw, 1.2f);
  const Bytes larger =
      *Model().codec().Encode(PlaceOf(tokens), different, AtStepOne());
  EXPECT_EQ(larger.size() - frame.size(), SinkBytes(Model().geometry(), 0, 4));
  for (uint32_t section : {0, 1}) {
    EXPECT_EQ(ReadSection(Model(), frame, section).sink_source,
              SinkSource::kBasis);
    EXPECT_EQ(ReadSection(Model(), larger, section).sink_source,
              SinkSource::kStored);
  }
  for (const auto& [block, of] :
       {std::make_pair(&frame, &raw), std::make_pair(&larger, &different)}) {
    const Bytes restored = Restored(Model().codec(), *block, PlaceOf(tokens));
    ASSERT_EQ(restored.size(), raw.size());
    EXPECT_TRUE(SinksMatch(Model().geometry(), 0, 4,
                           WriteSinks(Model().geometry(), 0, 4, *of),
                           restored));
  }
}

TEST(Sinks, OfOneGroupAreStoredWhereTheOthersAreKnown) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  Bytes raw = Model().Block(tokens, 0);
  std::fill_n(raw.begin(), 2 * 64, 0);  // Tokens 0 and 1 of K in layer 0.
  const Bytes frame =
      *Model().codec().Encode(PlaceOf(tokens), raw, AtStepOne());
  EXPECT_EQ(ReadSection(Model(), frame, 0).sink_source, SinkSource::kStored);
  EXPECT_EQ(ReadSection(Model(), frame, 1).sink_source, SinkSource::kBasis);
  const Bytes restored = Restored(Model().codec(), frame, PlaceOf(tokens));
  EXPECT_TRUE(std::equal(raw.begin(), raw.begin() + 2 * 64, restored.begin()));
}

TEST(Sinks, OfTokensThatTheBasisDoesNotKnowAreStored) {
  std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  const Bytes raw = Model().Block(tokens, 0);
  tokens[3] ^= 1;
  const Bytes frame =
      *Model().codec().Encode(PlaceOf(tokens), raw, AtStepOne());
  EXPECT_EQ(ReadSection(Model(), frame, 0).sink_source, SinkSource::kStored);
  EXPECT_EQ(Restored(Model().codec(), frame, PlaceOf(tokens)).size(),
            raw.size());
}

TEST(Sinks, AreOfAChainsFirstBlockAlone) {
  std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  tokens.insert(tokens.end(), tokens.begin(), tokens.end());
  const Bytes frame = *Model().codec().Encode(
      PlaceOf(tokens, 64), Model().Block(tokens, 64), AtStepOne());
  EXPECT_EQ(ReadSection(Model(), frame, 0).sink_source, SinkSource::kNone);
}

}  // namespace
}  // namespace latentkv
