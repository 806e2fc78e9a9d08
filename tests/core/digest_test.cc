#include "core/digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentkv {
namespace {

TEST(Digest, IsSha256OfTheConcatenation) {
  // FIPS 180-2, appendix B.1.
  const std::string abc =
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(Sha256({AsBytes("abc")}).Hex(), abc);
  EXPECT_EQ(Sha256({AsBytes("a"), AsBytes(""), AsBytes("bc")}).Hex(), abc);
}

TEST(Digest, IsReadFromHexAndBytes) {
  const Digest digest = Sha256({AsBytes("abc")});
  EXPECT_EQ(*DigestFromHex(digest.Hex()), digest);
  EXPECT_EQ(*DigestFromBytes(digest.span()), digest);
}

TEST(Digest, RefusesEverythingElse) {
  const std::string hex = Digest{}.Hex();
  for (const std::string& bad :
       {std::string(), hex.substr(1), hex + "0", "g" + hex.substr(1)}) {
    EXPECT_EQ(DigestFromHex(bad).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
  EXPECT_EQ(DigestFromBytes(AsBytes("short")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
