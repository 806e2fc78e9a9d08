#include "core/checksum.h"

#include <gtest/gtest.h>

#include <random>

namespace latentkv {
namespace {

uint32_t BitByBit(ByteSpan bytes) {
  uint32_t crc = ~0u;
  for (uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit)
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

TEST(Crc32c, AgreesWithTheStandardsExamples) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(Crc32c(Bytes(32, 0x00)), 0x8a9136aau);
  EXPECT_EQ(Crc32c(Bytes(32, 0xff)), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(AsBytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c({}), 0u);
}

TEST(Crc32c, AgreesWithTheDefinitionForEveryLengthAndAlignment) {
  std::mt19937 random(1);
  Bytes bytes(20000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t count :
       {0, 1, 7, 8, 9, 63, 2047, 2048, 6143, 6144, 6145, 12288, 12299, 19990}) {
    for (size_t offset : {0, 1, 3}) {
      const ByteSpan run = ByteSpan(bytes).subspan(offset, count);
      EXPECT_EQ(Crc32c(run), BitByBit(run)) << count << " bytes at " << offset;
    }
  }
}

TEST(Crc32c, ContinuesOverPieces) {
  const Bytes bytes(10000, 0x5a);
  EXPECT_EQ(Crc32c(ByteSpan(bytes).subspan(7001),
                   Crc32c(ByteSpan(bytes).first(7001))),
            Crc32c(bytes));
}

}  // namespace
}  // namespace latentkv
