// Files that were written once: whatever changes how they are read changes what
// people have stored.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "core/limits.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

struct Golden {
  const char* name;
  const char* file;      // SHA-256 of the file.
  const char* restored;  // Of the raw form that it restores.
};
constexpr char kBasis[] = "synthetic.basis";
constexpr char kBasisFile[] =
    "f9bed1a771ebf255238511dc580abfbba8f222b653ed5b87ae53e9f315322fd7";
constexpr Golden kExact = {
    "synthetic-exact.frame",
    "ddd4b0f384aa1371ba03997f6ab8948c580a37f57a76e07520beb6ae4a247727",
    "baa4cb35f34044eaa9f609a8f8c696e6063bae4995afbb0cc46313142883d3ea"};
constexpr Golden kFirst = {
    "synthetic-first.frame",
    "3722c758ed74d9b8c6da808c0bd5d77a338885b9fdb687b93323b5470108dcb9",
    "4a4099bb4433d6ece7dd27262155783ea817d04c668bd0faa784c9e52db3ac4a"};
constexpr Golden kNext = {
    "synthetic-next.frame",
    "5e860b70e7239a9adbba5948686c1cc7cec980ebf1ccdc71752e746532eb6343",
    "9dc7d4e8a27908387b8570a187ec276f8be06f4cc557ec4d2349509f4971a40b"};

constexpr Golden kScalar = {
    "synthetic-scalar.frame",
    "30ca9ee0429273631d377ad9b85db949c6ae4955399bc5c21aff5bafbf322553",
    "c993ecdba70b48def190ccbd46888c58b08bcbfc224fe6f9328d13a7fa2b4d8e"};
// Without a basis, in ValueDimGeometry.
constexpr Golden kValueDims = {
    "value-dims.frame",
    "91c126aa26e07050b8f0ac9b17114bc72fe063d8833c973885c692f6a6bc7f3f",
    "9728192c2e6c6cb586a0f989159819c95cba41b47d33b1774b306a160ce3400a"};
constexpr Golden kFrames[] = {kExact, kFirst, kNext, kScalar, kValueDims};

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

const std::vector<uint32_t>& Tokens() {
  static const std::vector<uint32_t> tokens =
      Model().Tokens(2 * kBlockTokens, 77);
  return tokens;
}

const Codec& ValueDims() {
  static const auto codec = *Codec::Create(ValueDimGeometry(), nullptr);
  return *codec;
}

uint32_t FirstTokenOf(const Golden& golden) {
  return golden.name == kNext.name ? 64 : 0;
}

std::string PathOf(const std::string& name) { return GOLDEN_PATH "/" + name; }

Bytes Read(const std::string& name) {
  std::ifstream file(PathOf(name), std::ios::binary);
  return Bytes((std::istreambuf_iterator<char>(file)), {});
}

std::string HexOf(const Bytes& bytes) { return Sha256({bytes}).Hex(); }

// With escapes, a token that is stored exact, and in the first block sinks of
// both sources.
Bytes Written(const Golden& golden) {
  EncodeOptions options;
  options.exact = golden.name == kExact.name;
  if (golden.name == kValueDims.name) {
    options.step = 0.5f;
    Bytes raw = DrawBlock(ValueDimGeometry());
    for (size_t i = 1; i < 8; i += 2) raw[50 * 8 + i] = 0x44;
    return *ValueDims().Encode(PlaceOf(Tokens()), raw, options);
  }
  Bytes raw = Model().Block(Tokens(), FirstTokenOf(golden));
  std::fill_n(raw.begin(), 32, 0);
  for (size_t at = 50 * 64; at < raw.size(); at += kBlockTokens * 64) {
    for (size_t i = 1; i < 64; i += 2) raw[at + i] = 0x44;
  }
  if (golden.name == kScalar.name) {
    options.step = 0.5f;
    return *(*Codec::Create(Model().geometry(), nullptr))
                ->Encode(PlaceOf(Tokens()), raw, options);
  }
  options.step = 0.75f;
  options.loss_inherited = 0.125f;
  return *Model().codec().Encode(PlaceOf(Tokens(), FirstTokenOf(golden)), raw,
                                 options);
}

TEST(Golden, TheBasisIsReadAndWrittenAlike) {
  const Bytes bytes = Read(kBasis);
  ASSERT_EQ(HexOf(bytes), kBasisFile);
  const auto basis = Basis::Parse(bytes);
  ASSERT_TRUE(basis.ok()) << basis.status();
  EXPECT_EQ((*basis)->serialized(), bytes);
  EXPECT_EQ(Model().basis()->serialized(), bytes);
}

TEST(Golden, FramesRestoreWhatTheyAlwaysDid) {
  const auto basis = Basis::Parse(Read(kBasis));
  ASSERT_TRUE(basis.ok()) << basis.status();
  const auto codec = *Codec::Create((*basis)->geometry(), *basis);
  for (const Golden& golden : kFrames) {
    const Bytes frame = Read(golden.name);
    ASSERT_EQ(HexOf(frame), golden.file) << golden.name;
    EXPECT_EQ(VerifyFrame(frame)->encoding.IsExact(),
              golden.name == kExact.name);
    EXPECT_EQ(
        HexOf(Restored(golden.name == kValueDims.name ? ValueDims() : *codec,
                       frame, PlaceOf(Tokens(), FirstTokenOf(golden)))),
        golden.restored)
        << golden.name;
  }
}

// Not a test: with LATENTKV_WRITE_GOLDEN set, frames that are not there yet are
// written, and what belongs above is said. Those that are there stay.
TEST(Golden, NewFramesAreWrittenWhereTheyAreAskedFor) {
  if (std::getenv("LATENTKV_WRITE_GOLDEN") == nullptr)
    GTEST_SKIP() << "LATENTKV_WRITE_GOLDEN is not set";
  for (const Golden& golden : kFrames) {
    if (std::filesystem::exists(PathOf(golden.name))) continue;
    const Bytes frame = Written(golden);
    std::ofstream(PathOf(golden.name), std::ios::binary) << AsText(frame);
    const Codec& codec =
        golden.name == kValueDims.name ? ValueDims() : Model().codec();
    const Bytes raw =
        Restored(codec, frame, PlaceOf(Tokens(), FirstTokenOf(golden)));
    std::cout << "{\"" << golden.name << "\", \"" << HexOf(frame) << "\",\n \""
              << HexOf(raw) << "\"};\n";
  }
}

// So that they guard every part of the format.
TEST(Golden, FramesHoldEverythingThatASectionCan) {
  const Bytes first = Read(kFirst.name), next = Read(kNext.name);
  EXPECT_EQ(ReadSection(Model(), first, 0).sink_source, SinkSource::kStored);
  EXPECT_EQ(ReadSection(Model(), first, 1).sink_source, SinkSource::kBasis);
  EXPECT_EQ(ReadSection(Model(), next, 0).sink_source, SinkSource::kNone);
  for (const uint32_t section : {0, 1}) {
    EXPECT_TRUE(ReadSection(Model(), next, section).predicted);
    EXPECT_EQ(ReadSection(Model(), next, section).exact_tokens,
              std::vector<uint8_t>{50});
    EXPECT_NE(SectionsOf(next)[section][4], 0) << "no escapes";
  }
  EXPECT_NE(SectionsOf(Read(kValueDims.name))[0][0], 0) << "no escapes";
}

}  // namespace
}  // namespace latentkv
