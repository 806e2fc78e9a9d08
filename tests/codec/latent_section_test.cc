#include "codec/latent_section.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "codec/latent_model.h"
#include "core/limits.h"
#include "kernels/latents.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

constexpr uint32_t kRank = 24;
constexpr SectionShape kShape = {10, 0}, kFirstShape = {10, 33};

const BasisGroup& Group() {
  static const BasisParts parts = SyntheticParts();
  return parts.groups[0];
}

const LatentTables& Tables() {
  static const LatentTables tables = MakeLatentTables();
  return tables;
}

LatentSection Section(uint64_t seed) {
  Random random(seed);
  LatentSection section;
  section.latents.resize(kRank * kBlockTokens);
  for (size_t i = 0; i < section.latents.size(); ++i) {
    section.latents[i] = static_cast<int16_t>(Group().latent_scale[i % kRank] *
                                              random.Laplace());
  }
  return section;
}

Bytes Written(const LatentSection& section) {
  const auto payload = WriteLatentSection(Group(), Tables(), 1, section);
  EXPECT_TRUE(payload.ok()) << payload.status();
  return *payload;
}

absl::StatusOr<LatentSection> Read(const Bytes& payload,
                                   const SectionShape& shape = kShape) {
  return ReadLatentSection(Group(), Tables(), 1, shape, payload);
}

void ExpectEqual(const LatentSection& a, const LatentSection& b) {
  EXPECT_EQ(a.predicted, b.predicted);
  EXPECT_EQ(a.sink_source, b.sink_source);
  EXPECT_EQ(a.latents, b.latents);
  EXPECT_EQ(a.exact_tokens, b.exact_tokens);
  EXPECT_EQ(a.exact_values, b.exact_values);
  EXPECT_EQ(a.sinks, b.sinks);
}

TEST(LatentSection, IsReadBack) {
  for (const bool predicted : {true, false}) {
    for (const SinkSource source :
         {SinkSource::kNone, SinkSource::kStored, SinkSource::kBasis}) {
      LatentSection section = Section(static_cast<uint64_t>(source));
      section.predicted = predicted;
      section.sink_source = source;
      if (source == SinkSource::kStored) section.sinks.assign(33, 7);
      section.exact_tokens = {3, 9, 63};
      section.exact_values.assign(30, 8);
      const auto read = Read(
          Written(section), source == SinkSource::kNone ? kShape : kFirstShape);
      ASSERT_TRUE(read.ok()) << read.status();
      ExpectEqual(*read, section);
    }
  }
}

TEST(LatentSection, HoldsAnyLatent) {
  LatentSection section = Section(4);
  Random random(5);
  for (int i = 0; i < 200; ++i) {
    section.latents[random.Below(section.latents.size())] =
        static_cast<int16_t>(random.Bits());
  }
  section.latents[0] = 32767;
  section.latents.back() = -32768;
  const auto read = Read(Written(section));
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectEqual(*read, section);
}

TEST(LatentSection, OfNothingButZerosTakesTheStatesAndEightBytes) {
  LatentSection section;
  section.latents.resize(kRank * kBlockTokens);
  EXPECT_EQ(Written(section).size(), 8 + 32 * 4u);
  ExpectEqual(*Read(Written(section)), section);
}

TEST(LatentSection, StoresNoRowBehindTheLastThatIsUsed) {
  LatentSection section;
  section.latents.resize(kRank * kBlockTokens);
  section.latents[40 * kRank + 10] = -3;
  Bytes payload = Written(section);
  uint16_t rank;
  std::memcpy(&rank, payload.data(), sizeof(rank));
  EXPECT_EQ(rank, 11);
  ExpectEqual(*Read(payload), section);
}

// Sets the bytes at `offset`.
template <typename T>
Bytes With(Bytes payload, size_t offset, T value) {
  std::memcpy(payload.data() + offset, &value, sizeof(value));
  return payload;
}

TEST(LatentSection, FirstBytesOutOfBoundsAreRefused) {
  LatentSection section = Section(6);
  section.exact_tokens = {3, 9};
  section.exact_values.assign(20, 8);
  const Bytes payload = Written(section);
  ASSERT_TRUE(Read(payload).ok());
  const auto code = [](const Bytes& forged,
                       const SectionShape& shape = kShape) {
    return Read(forged, shape).status().code();
  };
  EXPECT_EQ(code(With<uint16_t>(payload, 0, kRank + 1)),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code(With<uint16_t>(payload, 0, 0xffff)),
            absl::StatusCode::kDataLoss);
  // An unknown flag.
  EXPECT_EQ(code(With<uint8_t>(payload, 2, 8)), absl::StatusCode::kDataLoss);
  // Sinks where there are none.
  EXPECT_EQ(code(With<uint8_t>(payload, 2, 1)), absl::StatusCode::kDataLoss);
  // None where there are some.
  EXPECT_EQ(code(payload, kFirstShape), absl::StatusCode::kDataLoss);
  // Of both sources.
  EXPECT_EQ(code(With<uint8_t>(payload, 2, 3), kFirstShape),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code(With<uint8_t>(payload, 3, 65)), absl::StatusCode::kDataLoss);
  EXPECT_EQ(code(With<uint32_t>(payload, 4, 0xffffffff)),
            absl::StatusCode::kDataLoss);
  // Twice the same token.
  EXPECT_EQ(code(With<uint8_t>(payload, 8, 9)), absl::StatusCode::kDataLoss);
  // Descending.
  EXPECT_EQ(code(With<uint8_t>(payload, 8, 10)), absl::StatusCode::kDataLoss);
  // Behind the last.
  EXPECT_EQ(code(With<uint8_t>(payload, 9, 64)), absl::StatusCode::kDataLoss);
}

TEST(LatentSection, EscapesMustBeThoseOfItsSymbols) {
  LatentSection section = Section(7);
  for (int16_t& latent : section.latents) latent /= 16;  // None escapes.
  // Places 2 * 64 + 20 and 2 * 64 + 30, the first and last escapes.
  section.latents[20 * kRank + 2] = 300;
  section.latents[30 * kRank + 2] = -400;
  const Bytes payload = Written(section);
  uint32_t escapes;
  std::memcpy(&escapes, payload.data() + 4, sizeof(escapes));
  ASSERT_EQ(escapes, 2u);
  const auto read = Read(With<int16_t>(payload, 12, 256));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->latents[20 * kRank + 2], 256);
  for (uint32_t place : {0u, 147u, 158u, 159u, 24u * 64, 0xffffffffu}) {
    EXPECT_EQ(Read(With<uint32_t>(payload, 8, place)).status().code(),
              absl::StatusCode::kDataLoss)
        << place;
  }
  // One more and one less than there are.
  Bytes more = With<uint32_t>(payload, 4, 3),
        less = With<uint32_t>(payload, 4, 1);
  more.insert(more.begin() + 20, payload.begin() + 14, payload.begin() + 20);
  less.erase(less.begin() + 14, less.begin() + 20);
  EXPECT_EQ(Read(more).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(less).status().code(), absl::StatusCode::kDataLoss);
}

TEST(LatentSection, EveryTruncationAndExtensionIsRefused) {
  LatentSection section = Section(8);
  section.exact_tokens = {3, 9};
  section.exact_values.assign(20, 8);
  const Bytes payload = Written(section);
  for (size_t size = 0; size < payload.size(); ++size) {
    // A copy of the exact size on the heap: the address sanitizer sees a read
    // beyond.
    ASSERT_EQ(
        Read(Bytes(payload.begin(), payload.begin() + size)).status().code(),
        absl::StatusCode::kDataLoss);
  }
  for (size_t more = 1; more < 70; ++more) {
    Bytes longer = payload;
    longer.resize(payload.size() + more);
    ASSERT_EQ(Read(longer).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST(LatentsInBounds, AreThoseThatTheRestoresProductHoldsExactly) {
  EXPECT_TRUE(LatentsInBounds({}));
  EXPECT_TRUE(LatentsInBounds({256, -256}));
  EXPECT_FALSE(LatentsInBounds({257}));
  EXPECT_FALSE(LatentsInBounds({-257}));
  EXPECT_FALSE(LatentsInBounds({-32768}));
  // Magnitudes that sum to the bound, 2^24 over 127, and to one less.
  std::vector<int16_t> latents(kLatentSumMax / 256, -256);
  latents.push_back(kLatentSumMax % 256);
  EXPECT_FALSE(LatentsInBounds(latents));
  --latents.back();
  EXPECT_TRUE(LatentsInBounds(latents));
}

}  // namespace
}  // namespace latentkv
