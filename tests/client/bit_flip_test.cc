// One bit of a stored conversation, anywhere: a miss, and never a wrong byte.
#include <algorithm>
#include <random>

#include "core/frame.h"
#include "core/limits.h"
#include "storage/database.h"
#include "tests/client/client_fixture.h"
#include "tests/client/wrapped_channel.h"

namespace latentkv {
namespace {

constexpr uint32_t kFlips = 1000;
constexpr uint32_t kSections = 3;
constexpr uint64_t kHeaderBytes = 132 + 8 * kSections + 4;

// A part of a frame, docs/formats/frame.md. The end of the last is the frame's.
struct ByteClass {
  const char* name;
  uint64_t first, last;
};
constexpr ByteClass kClasses[] = {
    {"magic", 0, 4},
    {"version", 4, 6},
    {"reserved", 6, 8},
    {"header length", 8, 12},
    {"section count", 12, 16},
    {"key", 16, 48},
    {"geometry", 48, 80},
    {"basis", 80, 112},
    {"step", 112, 116},
    {"first token", 116, 120},
    {"token count", 120, 124},
    {"own loss", 124, 128},
    {"chain's loss", 128, 132},
    {"section table", 132, 156},
    {"header checksum", 156, 160},
    {"payload", kHeaderBytes, ~uint64_t{0}},
};

struct Flip {
  uint64_t byte;
  uint8_t mask;
  const ByteClass* of;
};

// Flip `index` of a frame of `frame_bytes`: half of them in the header, class
// by class, half in the payload.
Flip MakeFlip(uint32_t index, uint64_t frame_bytes) {
  std::mt19937_64 random(index);
  const uint32_t classes = std::size(kClasses);
  const ByteClass& of =
      kClasses[index % 2 == 0 ? classes - 1 : index / 2 % classes];
  const uint64_t last = std::min(of.last, frame_bytes);
  return {of.first + random() % (last - of.first),
          static_cast<uint8_t>(1u << random() % 8), &of};
}

class BitFlipTest : public ClientTest {
 protected:
  // Stores kFlips chains of one block.
  void StoreChains() {
    TestPages pages(geometry_, Layout::kTokensFirst, 64, 1);
    std::unique_ptr<Client> client = Open(&pages);
    for (uint32_t i = 0; i < kFlips; ++i) {
      pages.Compute(i, {0}, 0, 64);
      ASSERT_TRUE(client->Store({TestTokens(i, 64)}, 0, 64, {0}).ok());
    }
    ASSERT_TRUE(client->Flush(kLong).ok());
    ASSERT_EQ(client->Stats().stored_blocks, kFlips);
  }
};

// Returns how many there were.
uint32_t FlipEachPayload(const std::string& folder) {
  auto database = Database::Open(folder, LocalDaemon::kCapacityBytes);
  EXPECT_TRUE(database.ok()) << database.status();
  std::vector<std::pair<std::string, Bytes>> payloads;
  EXPECT_TRUE((*database)
                  ->Scan(Family::kPayload, "",
                         [&](absl::string_view key, absl::string_view value) {
                           const ByteSpan bytes = AsBytes(value);
                           payloads.emplace_back(
                               std::string(key),
                               Bytes(bytes.begin(), bytes.end()));
                         })
                  .ok());
  for (uint32_t i = 0; i < payloads.size(); ++i) {
    auto& [key, bytes] = payloads[i];
    const Flip flip = MakeFlip(i, bytes.size());
    bytes[flip.byte] ^= flip.mask;
    EXPECT_TRUE((*database)->Write({{Family::kPayload, key, bytes}}).ok());
  }
  EXPECT_TRUE((*database)->Close().ok());
  return payloads.size();
}

TEST_F(BitFlipTest, OnDiskIsAMissAndTouchesNoPage) {
  StoreChains();
  daemon_.Stop();
  ASSERT_EQ(FlipEachPayload(daemon_.data()), kFlips);
  daemon_.Start();
  TestPages pages(geometry_, Layout::kEngineCpu, 64, 1);
  const std::vector<Bytes> poison = pages.memory();
  std::unique_ptr<Client> client = Open(&pages);
  uint32_t misses = 0;
  for (uint32_t i = 0; i < kFlips; ++i) {
    const uint64_t matched = Match(client.get(), i, 64);
    if (matched == 0 || Load(client.get(), pages, i, 0, 64).token_count == 0)
      ++misses;
    ASSERT_TRUE(pages.memory() == poison) << i;
    // What was found damaged is gone, so that the recomputed block can take its
    // place.
    ASSERT_EQ(Match(client.get(), i, 64), 0u) << i;
  }
  EXPECT_EQ(misses, kFlips);
  EXPECT_EQ(client->Stats().load_failures, kFlips);
  EXPECT_EQ(client->Stats().loaded_tokens, 0u);
  EXPECT_EQ(daemon_.store()->Stats().quarantined_records, kFlips);
  for (uint32_t i : {0u, 7u}) EXPECT_TRUE(StoreSequence(i, 64));
  EXPECT_EQ(Load(client.get(), pages, 7, 0, 64).token_count, 64u);
}

// Flips bit `flip` of the frame that `section` is a part of. `sections_end` is
// where the section before it ended.
void FlipOnTheWay(const Flip& flip, uint64_t* sections_end,
                  FetchedSection* section) {
  auto copy = std::make_shared<std::pair<Bytes, Bytes>>(
      Bytes(section->header.begin(), section->header.end()),
      Bytes(section->payload.begin(), section->payload.end()));
  const uint64_t first = section->section == 0 ? kHeaderBytes : *sections_end;
  *sections_end = first + copy->second.size();
  if (flip.byte < copy->first.size()) copy->first[flip.byte] ^= flip.mask;
  if (flip.byte >= first && flip.byte < *sections_end)
    copy->second[flip.byte - first] ^= flip.mask;
  section->header = copy->first;
  section->payload = copy->second;
  section->owner = copy;
}

TEST_F(BitFlipTest, OnTheWayIsAMissAndWritesNoWrongByte) {
  StoreChains();
  auto channel = std::make_shared<WrappedChannel>(daemon_.Connect());
  uint32_t index = 0;
  uint64_t sections_end = 0;
  Flip flip{};
  channel->on_section = [&](FetchedSection* section, const CallLimits&) {
    FlipOnTheWay(flip, &sections_end, section);
  };
  TestPages pages(geometry_, Layout::kEngineCpu, 64, 1);
  const std::vector<Bytes> poison = pages.memory();
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  std::unique_ptr<CacheChannel> direct = daemon_.Connect();
  for (; index < kFlips; ++index) {
    const std::vector<uint32_t> tokens = TestTokens(index, 64);
    LookupQuery query;
    query.keys = *ChainKeys(TestConfig(channel, geometry_).scope, tokens);
    const LookupAnswer stored = *direct->Lookup(query, CallLimits::In(kLong));
    ASSERT_EQ(stored.records.size(), 1u);
    flip = MakeFlip(index, stored.records[0].frame_bytes);
    EXPECT_EQ(Load(client.get(), pages, index, 0, 64).token_count, 0u) << index;
    const TestPages right = Expected(Layout::kEngineCpu, 64, 1, index, 0, 64);
    for (size_t l = 0; l < poison.size(); ++l) {
      ASSERT_TRUE(pages.memory()[l] == poison[l] ||
                  pages.memory()[l] == right.memory()[l])
          << index;
    }
    // Damage is forgotten; what looks like another version is not for this
    // client to judge.
    const uint64_t left =
        absl::string_view(flip.of->name) == "version" ? 64 : 0;
    EXPECT_EQ(Match(client.get(), index, 64), left)
        << index << " in " << flip.of->name;
    pages.Poison();
  }
  EXPECT_EQ(client->Stats().load_failures, kFlips);
  EXPECT_EQ(client->Stats().loaded_tokens, 0u);
}

TEST_F(BitFlipTest, InTheMiddleOfAChainKeepsTheBlocksBefore) {
  ASSERT_TRUE(StoreSequence(5, 320));
  auto channel = std::make_shared<WrappedChannel>(daemon_.Connect());
  bool damage = true;
  channel->on_section = [&](FetchedSection* section, const CallLimits&) {
    uint64_t sections_end = kHeaderBytes;
    if (damage && section->record == 2 && section->section == 1) {
      FlipOnTheWay({kHeaderBytes, 1, &kClasses[0]}, &sections_end, section);
    }
  };
  TestPages pages(geometry_, Layout::kEngineCpu, 128, 3);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 320).token_count, 128u);
  EXPECT_EQ(client->Stats().load_failures, 3u);
  EXPECT_EQ(Match(client.get(), 5, 320), 128u);
  // Recomputed and stored again, it is whole.
  damage = false;
  pages.Compute(5, pages.PageIds(320, 5), 128, 320);
  ASSERT_TRUE(
      client->Store({TestTokens(5, 320)}, 128, 192, pages.PageIds(320, 5))
          .ok());
  ASSERT_TRUE(client->Flush(kLong).ok());
  pages.Poison();
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 320).token_count, 320u);
  EXPECT_TRUE(pages.memory() ==
              Expected(Layout::kEngineCpu, 128, 3, 5, 0, 320).memory());
}

}  // namespace
}  // namespace latentkv
