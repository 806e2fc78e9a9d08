// Files that were written once: whatever changes how they are read changes what people have stored.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
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
constexpr char kBasisFile[] = "8c14ca3a92adfe74b24524438c633b84124aff70fb54cb4164dadcc85cecb8ab";
constexpr Golden kExact = {"synthetic-exact.frame",
                            "1869b95e1c28d489aaa135b5397efba5d26794c19f17cbb5e69757ec6f561f1f",
                            "089b8079355c48174ce77d881af1b414d9bed6bbc0faff5320f4aa02a5c2a5fd"};
constexpr Golden kFirst = {"synthetic-first.frame",
                            "4a95faa38070c840c5515021fd5162a688cf56ef3811ec479c9df837208d7d21",
                            "21efb292250fc9b5b957a01bbe1859bf3130eabaf63b9f785d90e3544542e769"};
constexpr Golden kNext = {"synthetic-next.frame",
                            "693b14587a2c4c402d044fb628d6b6afccf13cbf70e5ceb5462171820432a217",
                            "0cf8113153a949a3a46fb4acb7b19b1d7e31938f5c84905a86cda0b9a48c0790"};

const SyntheticModel& Model() {
  static const SyntheticModel model;
  return model;
}

const std::vector<uint32_t>& Tokens() {
  static const std::vector<uint32_t> tokens = Model().Tokens(2 * kBlockTokens, 77);
  return tokens;
}

uint32_t FirstTokenOf(const Golden& golden) { return golden.name == kNext.name ? 64 : 0; }

std::string PathOf(const std::string& name) { return GOLDEN_PATH "/" + name; }

Bytes Read(const std::string& name) {
  std::ifstream file(PathOf(name), std::ios::binary);
  return Bytes((std::istreambuf_iterator<char>(file)), {});
}

std::string HexOf(const Bytes& bytes) { return Sha256({bytes}).Hex(); }

// With escapes, a token that is stored exact, and in the first block sinks of both sources.
Bytes Written(const Golden& golden) {
  Bytes raw = Model().Block(Tokens(), FirstTokenOf(golden));
  std::fill_n(raw.begin(), 32, 0);
  for (size_t at = 50 * 64; at < raw.size(); at += kBlockTokens * 64) {
    for (size_t i = 1; i < 64; i += 2) raw[at + i] = 0x44;
  }
  EncodeOptions options;
  options.exact = golden.name == kExact.name;
  options.step = 0.75f;
  options.loss_inherited = 0.125f;
  return *Model().codec().Encode(PlaceOf(Tokens(), FirstTokenOf(golden)), raw, options);
}

// Writes the files anew instead, and says what belongs above.
bool WriteInstead() {
  if (std::getenv("LATENTKV_WRITE_GOLDEN") == nullptr) return false;
  const Bytes basis = Model().basis()->serialized();
  std::ofstream(PathOf(kBasis), std::ios::binary) << AsText(basis);
  std::cout << "kBasisFile[] = \"" << HexOf(basis) << "\";\n";
  for (const Golden& golden : {kExact, kFirst, kNext}) {
    const Bytes frame = Written(golden);
    std::ofstream(PathOf(golden.name), std::ios::binary) << AsText(frame);
    const Bytes raw = Restored(Model().codec(), frame, PlaceOf(Tokens(), FirstTokenOf(golden)));
    std::cout << "{\"" << golden.name << "\", \"" << HexOf(frame) << "\",\n \"" << HexOf(raw) << "\"};\n";
  }
  return true;
}

TEST(Golden, TheBasisIsReadAndWrittenAlike) {
  if (WriteInstead()) GTEST_SKIP() << "written, not compared";
  const Bytes bytes = Read(kBasis);
  ASSERT_EQ(HexOf(bytes), kBasisFile);
  const auto basis = Basis::Parse(bytes);
  ASSERT_TRUE(basis.ok()) << basis.status();
  EXPECT_EQ((*basis)->serialized(), bytes);
  EXPECT_EQ(Model().basis()->serialized(), bytes);
}

TEST(Golden, FramesRestoreWhatTheyAlwaysDid) {
  if (std::getenv("LATENTKV_WRITE_GOLDEN") != nullptr) GTEST_SKIP() << "written, not compared";
  const auto basis = Basis::Parse(Read(kBasis));
  ASSERT_TRUE(basis.ok()) << basis.status();
  const auto codec = *Codec::Create((*basis)->geometry(), *basis);
  for (const Golden& golden : {kExact, kFirst, kNext}) {
    const Bytes frame = Read(golden.name);
    ASSERT_EQ(HexOf(frame), golden.file) << golden.name;
    EXPECT_EQ(VerifyFrame(frame)->encoding.IsExact(), golden.name == kExact.name);
    EXPECT_EQ(HexOf(Restored(*codec, frame, PlaceOf(Tokens(), FirstTokenOf(golden)))), golden.restored) << golden.name;
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
    EXPECT_EQ(ReadSection(Model(), next, section).exact_tokens, std::vector<uint8_t>{50});
    EXPECT_NE(SectionsOf(next)[section][4], 0) << "no escapes";
  }
}

}  // namespace
}  // namespace latentkv
