#include "core/encoding.h"

#include <gtest/gtest.h>

#include <cmath>

namespace latentkv {
namespace {

TEST(Encoding, IsReadBack) {
  const Encoding basis{Sha256({AsBytes("basis")}), 1.5f};
  EXPECT_EQ(*EncodingFromBytes(AsBytes(basis.ToBytes())), basis);
  EXPECT_EQ(*EncodingFromBytes(AsBytes(Encoding::Exact().ToBytes())),
            Encoding::Exact());
  EXPECT_EQ(Encoding::Exact().ToString(), "exact");
  EXPECT_EQ(basis.ToString(), basis.basis.Hex().substr(0, 8) + "@1.5");
}

TEST(Encoding, RefusesStepsThatDoNotFit) {
  for (float step : {0.0f, -1.0f, INFINITY, NAN}) {
    EXPECT_FALSE(
        EncodingFromBytes(AsBytes(Encoding{Sha256({}), step}.ToBytes())).ok())
        << step;
  }
  EXPECT_FALSE(
      EncodingFromBytes(AsBytes(Encoding{Digest{}, 1}.ToBytes())).ok());
  EXPECT_FALSE(
      EncodingFromBytes(AsBytes(Encoding{Digest{}, -0.0f}.ToBytes())).ok());
  EXPECT_FALSE(EncodingFromBytes(AsBytes("short")).ok());
}

}  // namespace
}  // namespace latentkv
