// What a reader refuses: frames of something else, sections out of order, bytes
// that are damaged or made up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "codec/latent_model.h"
#include "core/limits.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

const std::vector<uint32_t>& Tokens() {
  static const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens);
  return tokens;
}

BlockPlace Place(uint32_t first_token = 64) {
  return PlaceOf(Tokens(), first_token);
}

// A frame that has everything: escapes, a token stored exact, and in a chain's
// first block sinks of both sources.
Bytes Frame(bool exact, uint32_t first_token = 64) {
  Bytes raw = Model().Block(Tokens(), first_token);
  std::fill_n(raw.begin(), 32, 0);
  for (size_t part = 0; part < raw.size(); part += 64 * kBlockTokens) {
    // Above 500.
    for (size_t at = part + 50 * 64; at < part + 51 * 64; at += 2)
      raw[at + 1] = 0x44;
  }
  EncodeOptions options;
  options.exact = exact;
  options.step = 0.5f;
  return *Model().codec().Encode(PlaceOf(Tokens(), first_token), raw, options);
}

struct Opened {
  FrameHeader header;
  std::unique_ptr<BlockReader> reader;
  std::vector<Bytes> sections;
  BlockPages pages{Model().geometry()};
  absl::Status Read(uint32_t section) {
    return Read(section, sections[section]);
  }
  absl::Status Read(uint32_t section, ByteSpan payload) {
    return ReadInto(Model().codec(), header.encoding, section, payload,
                    reader.get(), &pages);
  }
};

Opened Open(const Bytes& frame, const BlockPlace& place) {
  FrameHeader header = *VerifyFrame(frame);
  return {header, *Model().codec().Open(header, place), SectionsOf(frame)};
}

absl::Status OpenStatus(const FrameHeader& header, const BlockPlace& place) {
  return Model().codec().Open(header, place).status();
}

void ExpectReason(const absl::Status& status, absl::StatusCode code,
                  const std::string& reason) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(reason));
}

TEST(Open, RefusesFramesOfSomethingElseAndSaysOfWhat) {
  for (const bool exact : {true, false}) {
    const FrameHeader header = *VerifyFrame(Frame(exact));
    ASSERT_TRUE(OpenStatus(header, Place()).ok());
    BlockPlace place = Place();
    place.key.bytes[31] ^= 1;
    ExpectReason(OpenStatus(header, place),
                 absl::StatusCode::kFailedPrecondition, "another key");
    ExpectReason(OpenStatus(header, Place(0)),
                 absl::StatusCode::kFailedPrecondition,
                 "tokens from 64 on, not from 0");
    FrameHeader other = header;
    other.geometry.bytes[0] ^= 1;
    ExpectReason(OpenStatus(other, Place()),
                 absl::StatusCode::kFailedPrecondition, "another geometry");
    other = header;
    other.sections.pop_back();
    ExpectReason(OpenStatus(other, Place()),
                 absl::StatusCode::kFailedPrecondition,
                 exact ? "3 sections, not 4" : "1 sections, not 2");
    other = header;
    other.encoding = {Sha256({AsBytes("another basis")}), 1};
    ExpectReason(OpenStatus(other, Place()),
                 absl::StatusCode::kFailedPrecondition,
                 "a basis that is not here");
    place = Place();
    place.tokens.remove_suffix(1);
    ExpectReason(OpenStatus(header, place), absl::StatusCode::kInvalidArgument,
                 "127 tokens");
  }
}

TEST(Open, WithoutABasisTakesExactFramesAlone) {
  const auto codec = *Codec::Create(Model().geometry(), nullptr);
  EXPECT_TRUE(codec->Open(*VerifyFrame(Frame(true)), Place()).ok());
  ExpectReason(codec->Open(*VerifyFrame(Frame(false)), Place()).status(),
               absl::StatusCode::kFailedPrecondition,
               "a basis that is not here");
}

TEST(ReadSection, RefusesSectionsOutOfOrder) {
  for (const bool exact : {true, false}) {
    Opened opened = Open(Frame(exact), Place());
    ExpectReason(opened.Read(1), absl::StatusCode::kFailedPrecondition,
                 "section 1 where 0 comes next");
    EXPECT_TRUE(opened.pages.Untouched(0, 4));
    ASSERT_TRUE(opened.Read(0).ok());
    ExpectReason(opened.Read(0), absl::StatusCode::kFailedPrecondition,
                 "section 0 where 1 comes next");
    ASSERT_TRUE(opened.Read(1).ok());
    for (uint32_t s = 2; s < opened.sections.size(); ++s)
      ASSERT_TRUE(opened.Read(s).ok());
    const uint32_t end = opened.sections.size();
    ExpectReason(opened.Read(end, opened.sections[0]),
                 absl::StatusCode::kFailedPrecondition, "comes next");
  }
}

TEST(ReadSection, NeedsMemoryOfTheSizeOfItsLayers) {
  for (const bool exact : {true, false}) {
    Opened opened = Open(Frame(exact), Place());
    const auto [first, last] =
        Model().codec().SectionLayers(opened.header.encoding, 0);
    Bytes raw(RawBytes(Model().geometry(), first, last, kBlockTokens) + 1);
    ExpectReason(
        opened.reader->ReadSection(0, opened.sections[0], absl::MakeSpan(raw)),
        absl::StatusCode::kInvalidArgument, "bytes for a section");
    raw.pop_back();
    EXPECT_TRUE(
        opened.reader->ReadSection(0, opened.sections[0], absl::MakeSpan(raw))
            .ok());
  }
}

TEST(ReadSection, TouchesTheLayersOfItsSectionAlone) {
  for (const bool exact : {true, false}) {
    Opened opened = Open(Frame(exact), Place());
    for (uint32_t s = 0; s < opened.sections.size(); ++s) {
      ASSERT_TRUE(opened.Read(s).ok());
      const auto [first, last] =
          Model().codec().SectionLayers(opened.header.encoding, s);
      EXPECT_FALSE(opened.pages.Untouched(first, last));
      EXPECT_TRUE(opened.pages.Untouched(last, 4));
    }
  }
}

TEST(ReadSection,
     TakesTheSectionAgainAfterADamagedCopyAndRefusesThoseBehindIt) {
  for (const bool exact : {true, false}) {
    const Bytes frame = Frame(exact);
    Opened opened = Open(frame, Place());
    Bytes damaged = opened.sections[0];
    damaged[damaged.size() / 2] ^= 1;
    ExpectReason(opened.Read(0, damaged), absl::StatusCode::kDataLoss,
                 "checksum");
    EXPECT_TRUE(opened.pages.Untouched(0, 4));
    EXPECT_EQ(opened.Read(1).code(), absl::StatusCode::kFailedPrecondition);
    for (uint32_t s = 0; s < opened.sections.size(); ++s)
      ASSERT_TRUE(opened.Read(s).ok());
    EXPECT_EQ(opened.pages.raw(), Restored(Model().codec(), frame, Place()));
  }
}

TEST(ReadSection, NoBitFlipOrTruncationTouchesAPage) {
  Random random(1);
  for (const bool exact : {true, false}) {
    Opened opened = Open(Frame(exact), Place());
    for (int round = 0; round < 300; ++round) {
      Bytes damaged = opened.sections[0];
      if (round % 3 == 0) {
        damaged.resize(random.Below(damaged.size()));
      } else {
        damaged[random.Below(damaged.size())] ^= 1 << random.Below(8);
      }
      ASSERT_EQ(opened.Read(0, damaged).code(), absl::StatusCode::kDataLoss);
    }
    EXPECT_TRUE(opened.pages.Untouched(0, 4));
  }
}

// Damage behind a good checksum: DataLoss, or something else that is
// well-formed; the address sanitizer watches.
TEST(ReadSection, ForgedSectionsAreRefusedOrRestoreSomethingAndNeverInPart) {
  Random random(2);
  for (const bool exact : {true, false}) {
    for (uint32_t first_token : {0, 64}) {
      const Bytes frame = Frame(exact, first_token);
      const std::vector<Bytes> intact = SectionsOf(frame);
      if (!exact && first_token == 0) {
        ASSERT_EQ(ReadSection(Model(), frame, 0).sink_source,
                  SinkSource::kStored);
        ASSERT_EQ(ReadSection(Model(), frame, 1).sink_source,
                  SinkSource::kBasis);
      }
      int refused = 0;
      for (int round = 0; round < 1500; ++round) {
        std::vector<Bytes> sections = intact;
        const uint32_t forged = random.Below(sections.size());
        Bytes& section = sections[forged];
        // Half of the changes in the first bytes, which say how the rest is
        // read.
        const uint32_t within = round % 2 == 0
                                    ? std::min<size_t>(section.size(), 24)
                                    : section.size();
        for (uint32_t changes = 1 + random.Below(3); changes > 0; --changes) {
          section[random.Below(within)] = static_cast<uint8_t>(random.Bits());
        }
        if (round % 5 == 0) section.resize(random.Below(section.size() + 40));
        Opened opened =
            Open(WithSections(frame, sections), PlaceOf(Tokens(), first_token));
        for (uint32_t s = 0; s < forged; ++s) ASSERT_TRUE(opened.Read(s).ok());
        const absl::Status status = opened.Read(forged);
        const auto [first, last] =
            Model().codec().SectionLayers(opened.header.encoding, forged);
        if (!status.ok()) {
          ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss);
          ASSERT_TRUE(opened.pages.Untouched(first, 4));
          ++refused;
        } else {
          ASSERT_FALSE(opened.pages.Untouched(first, last));
        }
      }
      EXPECT_GT(refused, 300);
    }
  }
}

TEST(ReadSection, LatentsBeyondTheBoundsOfTheProductAreRefused) {
  const LatentTables tables = MakeLatentTables();
  const Bytes frame = Frame(false);
  std::vector<Bytes> sections = SectionsOf(frame);
  const LatentSection intact = ReadSection(Model(), frame, 0);
  ASSERT_THAT(intact.exact_tokens, testing::ElementsAre(50));
  // Of a token like any other, and of the one whose latents count for nothing.
  for (const uint32_t token : {0, 50}) {
    for (const int16_t latent : {257, -32768}) {
      LatentSection section = intact;
      section.latents[token * 24 + 7] = latent;
      sections[0] = *WriteLatentSection(Model().basis()->groups()[0], tables,
                                        0.5f, section);
      Opened opened = Open(WithSections(frame, sections), Place());
      EXPECT_EQ(opened.Read(0).code(), absl::StatusCode::kDataLoss) << token;
      EXPECT_TRUE(opened.pages.Untouched(0, 4));
    }
  }
}

TEST(ReadSection, AStepOfAnyMagnitudeIsReadWithoutHarm) {
  const Bytes frame = Frame(false);
  for (const float step : {1e-45f, 1e-38f, 1e-10f, 1e10f, 3e38f}) {
    FrameHeader header = *VerifyFrame(frame);
    header.encoding.step = step;
    BlockPages pages(Model().geometry());
    const absl::Status status =
        Restore(Model().codec(), *WriteFrame(header, SectionsOf(frame)),
                Place(), &pages);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kDataLoss)
        << status;
  }
}

TEST(ReadSection, SinksOfTheBasisNeedItsTokens) {
  const std::vector<uint32_t> tokens = Model().Tokens(kBlockTokens);
  EncodeOptions options;
  options.exact = false;
  options.step = 1;
  const Bytes frame = *Model().codec().Encode(
      PlaceOf(tokens), Model().Block(tokens, 0), options);
  ASSERT_EQ(ReadSection(Model(), frame, 0).sink_source, SinkSource::kBasis);
  std::vector<uint32_t> other = tokens;
  other[0] = 2;
  Opened opened = Open(frame, PlaceOf(other));
  ExpectReason(opened.Read(0), absl::StatusCode::kDataLoss, "does not know");
  EXPECT_TRUE(opened.pages.Untouched(0, 4));
}

}  // namespace
}  // namespace latentkv
