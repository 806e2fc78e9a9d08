#include "core/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "core/checksum.h"
#include "core/limits.h"

namespace latentkv {
namespace {

FrameHeader Header() {
  FrameHeader header;
  header.key = Sha256({AsBytes("key")});
  header.geometry = Sha256({AsBytes("geometry")});
  header.encoding = {Sha256({AsBytes("basis")}), 1.5f};
  header.first_token = 128;
  header.token_count = kBlockTokens;
  header.loss_own = 0.25f;
  header.loss_chain = 0.75f;
  return header;
}

const std::vector<Bytes>& Sections() {
  static const std::vector<Bytes> sections = {{1, 2, 3}, {}, {0xff}};
  return sections;
}

// Sets bytes at `offset` and makes the header's checksum right again, so that
// what is checked behind it is reached.
template <typename T>
Bytes Forged(size_t offset, T value) {
  Bytes frame = *WriteFrame(Header(), Sections());
  std::memcpy(frame.data() + offset, &value, sizeof(value));
  const size_t checked = FrameHeaderBytes(3) - 4;
  const uint32_t crc = Crc32c(ByteSpan(frame).first(checked));
  std::memcpy(frame.data() + checked, &crc, sizeof(crc));
  return frame;
}

TEST(Frame, IsReadBack) {
  const Bytes frame = *WriteFrame(Header(), Sections());
  const FrameHeader header = *VerifyFrame(frame);
  EXPECT_EQ(header.key, Header().key);
  EXPECT_EQ(header.geometry, Header().geometry);
  EXPECT_EQ(header.encoding, Header().encoding);
  EXPECT_EQ(header.first_token, 128u);
  EXPECT_EQ(header.loss_own, 0.25f);
  EXPECT_EQ(header.loss_chain, 0.75f);
  ASSERT_EQ(header.sections.size(), 3u);
  for (size_t s = 0; s < 3; ++s) {
    const ByteSpan payload = ByteSpan(frame).subspan(header.sections[s].offset,
                                                     header.sections[s].bytes);
    EXPECT_EQ(Bytes(payload.begin(), payload.end()), Sections()[s]);
  }
}

// The worked example of docs/formats/frame.md.
TEST(Frame, IsTheGoldenFile) {
  std::ifstream file(GOLDEN_PATH "/envelope.frame", std::ios::binary);
  const Bytes golden((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(*WriteFrame(Header(), Sections()), golden);
}

TEST(Frame, EveryBitFlipAndTruncationIsRefused) {
  const Bytes frame = *WriteFrame(Header(), Sections());
  for (size_t bit = 0; bit < 8 * frame.size(); ++bit) {
    Bytes damaged = frame;
    damaged[bit / 8] ^= 1 << (bit % 8);
    EXPECT_FALSE(VerifyFrame(damaged).ok()) << "bit " << bit;
  }
  for (size_t count = 0; count < frame.size(); ++count) {
    EXPECT_EQ(VerifyFrame(ByteSpan(frame).first(count)).status().code(),
              absl::StatusCode::kDataLoss)
        << count;
  }
  Bytes longer = frame;
  longer.push_back(0);
  EXPECT_FALSE(VerifyFrame(longer).ok());
}

TEST(Frame, TheHeaderCanBeReadAlone) {
  const Bytes frame = *WriteFrame(Header(), Sections());
  EXPECT_TRUE(
      ParseFrameHeader(ByteSpan(frame).first(FrameHeaderBytes(3)), frame.size())
          .ok());
  EXPECT_FALSE(ParseFrameHeader(ByteSpan(frame).first(FrameHeaderBytes(3)),
                                frame.size() - 1)
                   .ok());
}

TEST(Frame, AnUnknownVersionIsNamed) {
  const absl::Status status = VerifyFrame(Forged<uint16_t>(4, 7)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("version 7"));
}

TEST(Frame, ValuesOutOfBoundsAreRefusedBehindAGoodChecksum) {
  // What is forged is what is refused.
  EXPECT_TRUE(VerifyFrame(Forged<uint32_t>(120, kBlockTokens)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint16_t>(6, 1)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(8, 12)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(12, 0)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(12, 0xffffffff)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<float>(112, NAN)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(116, 1)).ok());
  EXPECT_FALSE(
      VerifyFrame(Forged<uint32_t>(116, kChainBlocksMax * kBlockTokens)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(120, 63)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<float>(124, -1)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<float>(128, 0.125f)).ok());
  EXPECT_FALSE(VerifyFrame(Forged<uint32_t>(132, 0xffffffff)).ok());
}

TEST(Frame, IsNotWrittenOutOfBounds) {
  EXPECT_EQ(WriteFrame(Header(), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      WriteFrame(Header(), std::vector<Bytes>(kGroupsMax + 1)).status().code(),
      absl::StatusCode::kInvalidArgument);
  FrameHeader header = Header();
  header.loss_chain = 0;
  EXPECT_EQ(WriteFrame(header, Sections()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
