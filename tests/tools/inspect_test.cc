// `latentkv inspect` on frames and bases, whole and damaged.
#include <cmath>

#include "codec/basis.h"
#include "core/frame.h"
#include "core/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tools/process.h"

namespace latentkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

FrameHeader TestHeader() {
  FrameHeader header;
  header.key = Sha256({AsBytes("key")});
  header.geometry = Sha256({AsBytes("geometry")});
  header.first_token = 2 * kBlockTokens;
  header.token_count = kBlockTokens;
  return header;
}

Bytes TestFrame(const FrameHeader& header) {
  return *WriteFrame(header, {Bytes(640, 1), Bytes(1280, 2)});
}

std::shared_ptr<const Basis> TestBasis() {
  LayerGeometry layer;
  layer.kv_heads = 2;
  layer.head_dim = 64;
  BasisGroup group;
  group.first_layer = 0;
  group.last_layer = 2;
  group.channels = 2 * layer.Channels();
  group.rank = 32;
  group.mean.assign(group.channels, 0);
  group.row_scale.assign(group.channels, 0.01F);
  group.weight.assign(group.channels, 1);
  group.sensitivity.assign(group.channels, 1e-6F);
  for (uint32_t r = 0; r < group.rank; ++r)
    group.latent_scale.push_back(std::ldexp(16.0F, -static_cast<int>(r)));
  group.decoder.assign(size_t{group.rank} * group.channels, 3);
  BasisParts parts;
  parts.geometry = Geometry{{layer, layer}};
  parts.groups = {group};
  parts.profiles = {{"balanced", 4, 0.01F}};
  parts.description = "a test";
  auto basis = Basis::Create(std::move(parts));
  EXPECT_TRUE(basis.ok()) << basis.status();
  return basis.ok() ? *basis : nullptr;
}

TEST(InspectTest, ExactFrameIsExplained) {
  ScratchFolder folder;
  const FrameHeader header = TestHeader();
  const Ran ran =
      RunCommand({"inspect", folder.Write("frame", TestFrame(header))});
  EXPECT_EQ(ran.exit_status, 0) << ran.error;
  EXPECT_THAT(
      ran.output,
      AllOf(HasSubstr(header.key.Hex()), HasSubstr(header.geometry.Hex()),
            HasSubstr("exact"), HasSubstr("64 tokens from position 128"),
            HasSubstr("10.0 a token"), HasSubstr("20.0 a token")));
  EXPECT_THAT(ran.output, Not(HasSubstr("DAMAGED")));
  EXPECT_THAT(ran.error, IsEmpty());
}

TEST(InspectTest, FrameOfABasisNamesBasisStepAndLoss) {
  ScratchFolder folder;
  FrameHeader header = TestHeader();
  header.encoding = {Sha256({AsBytes("basis")}), 0.5F};
  header.loss_own = 0.00125F;
  header.loss_chain = 0.0025F;
  const Ran ran =
      RunCommand({"inspect", folder.Write("frame", TestFrame(header))});
  EXPECT_EQ(ran.exit_status, 0) << ran.error;
  EXPECT_THAT(
      ran.output,
      AllOf(HasSubstr("step 0.5 in basis " + header.encoding.basis.Hex()),
            HasSubstr("0.00125 nats"), HasSubstr("0.0025 with")));
}

TEST(InspectTest, DamagedSectionIsNamedWithItsBytes) {
  ScratchFolder folder;
  Bytes frame = TestFrame(TestHeader());
  frame.back() ^= 1;
  const Ran ran = RunCommand({"inspect", folder.Write("frame", frame)});
  EXPECT_EQ(ran.exit_status, 1);
  const std::string range = "section 1, bytes [" +
                            std::to_string(frame.size() - 1280) + ", " +
                            std::to_string(frame.size()) + ")";
  EXPECT_THAT(ran.error,
              AllOf(HasSubstr(range + " does not match its checksum"),
                    Not(HasSubstr("section 0"))));
  EXPECT_THAT(ran.output, HasSubstr("DAMAGED"));
}

TEST(InspectTest, FrameWhoseHeaderOrLengthIsWrongIsNotExplained) {
  ScratchFolder folder;
  const Bytes whole = TestFrame(TestHeader());
  Bytes flipped = whole;
  flipped[40] ^= 1;
  Bytes cut(whole.begin(), whole.end() - 1);
  for (const Bytes& frame :
       {flipped, cut, Bytes(whole.begin(), whole.begin() + 6)}) {
    const Ran ran = RunCommand({"inspect", folder.Write("frame", frame)});
    EXPECT_EQ(ran.exit_status, 1);
    EXPECT_THAT(ran.error, HasSubstr("as a frame: "));
    EXPECT_THAT(ran.output, IsEmpty());
  }
}

TEST(InspectTest, BasisIsExplained) {
  ScratchFolder folder;
  auto basis = TestBasis();
  ASSERT_NE(basis, nullptr);
  const Ran ran =
      RunCommand({"inspect", folder.Write("basis", basis->serialized())});
  EXPECT_EQ(ran.exit_status, 0) << ran.error;
  EXPECT_THAT(ran.output,
              AllOf(HasSubstr(basis->digest().Hex()),
                    HasSubstr("made from      a test"), HasSubstr("2 layers"),
                    HasSubstr("balanced"), HasSubstr("step 4"),
                    HasSubstr("32 latents, 5 coded at balanced")));
}

TEST(InspectTest, DamagedBasisIsAnError) {
  ScratchFolder folder;
  auto basis = TestBasis();
  ASSERT_NE(basis, nullptr);
  Bytes bytes = basis->serialized();
  bytes[bytes.size() / 2] ^= 1;
  const Ran ran = RunCommand({"inspect", folder.Write("basis", bytes)});
  EXPECT_EQ(ran.exit_status, 1);
  EXPECT_THAT(ran.error, HasSubstr("as a basis: "));
  EXPECT_THAT(ran.output, IsEmpty());
}

TEST(InspectTest, OtherFilesAreRefusedWithTheReason) {
  ScratchFolder folder;
  EXPECT_THAT(RunCommand({"inspect", folder.Path("none")}).error,
              HasSubstr("No such file"));
  EXPECT_THAT(RunCommand({"inspect", "/tmp"}).error,
              HasSubstr("no regular file"));
  for (const std::string content : {"", "abc", "some text of a person"}) {
    const Ran ran =
        RunCommand({"inspect", folder.Write("text", AsBytes(content))});
    EXPECT_EQ(ran.exit_status, 1);
    EXPECT_THAT(ran.error, HasSubstr("neither a frame nor a basis"));
  }
}

}  // namespace
}  // namespace latentkv
