// Bytes of a closed folder changed: a store gives what was stored, or nothing.
#include <fstream>
#include <random>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/storage/frames.h"

namespace latentkv {
namespace {

constexpr size_t kFrameBytes = 16 << 10;
constexpr uint32_t kBlocks = 40;
constexpr uint64_t kCapacity = 64 << 20;

absl::StatusOr<std::unique_ptr<BlockStore>> Open(const ScratchFolder& folder) {
  return RocksDbBlockStore::Open(
      {.path = folder.path(), .capacity_bytes = kCapacity});
}

// A folder closed after storing, its payloads in blob files.
void Fill(const ScratchFolder& folder) {
  auto store = Open(folder);
  ASSERT_TRUE(store.ok()) << store.status();
  for (uint32_t block = 0; block < kBlocks; ++block) {
    ASSERT_TRUE(PutBlock(store->get(), 1, block, kFrameBytes).ok());
  }
  ASSERT_TRUE((*store)->Close().ok());
}

// Calls `change` with the contents of every file of that extension; how many
// bytes there were.
template <typename F>
size_t ChangeFiles(const ScratchFolder& folder, const std::string& extension,
                   F change) {
  size_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().extension() != extension) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    std::string content((std::istreambuf_iterator<char>(in)), {});
    in.close();
    bytes += content.size();
    change(&content);
    std::ofstream(entry.path(), std::ios::binary | std::ios::trunc)
        .write(content.data(), content.size());
  }
  return bytes;
}

struct Reading {
  uint32_t whole = 0, lost = 0;
};

Reading ReadAll(BlockStore* store) {
  Reading reading;
  for (uint32_t block = 0; block < kBlocks; ++block) {
    auto frame = store->Get(ExactId(1, block));
    if (frame.ok()) {
      EXPECT_TRUE(IsBlock(*frame, 1, block, kFrameBytes))
          << "wrong bytes in block " << block;
      ++reading.whole;
    } else {
      EXPECT_TRUE(absl::IsDataLoss(frame.status()) ||
                  absl::IsNotFound(frame.status()))
          << frame.status();
      ++reading.lost;
    }
  }
  return reading;
}

TEST(DamageTest, FlippedBytesOfPayloadsAreQuarantinedAndCanBeStoredAnew) {
  ScratchFolder folder;
  Fill(folder);
  std::mt19937 random(7);
  const size_t bytes = ChangeFiles(folder, ".blob", [&](std::string* content) {
    for (int i = 0; i < 12; ++i)
      (*content)[random() % content->size()] ^= 1 << (random() % 8);
  });
  ASSERT_GT(bytes, kBlocks * kFrameBytes);
  auto store = Open(folder);
  ASSERT_TRUE(store.ok()) << store.status();
  const Reading reading = ReadAll(store->get());
  EXPECT_GT(reading.lost, 0u);
  EXPECT_GT(reading.whole, 0u);
  EXPECT_EQ((*store)->Stats().quarantined_records, reading.lost);
  EXPECT_EQ((*store)->Stats().records, reading.whole);
  EXPECT_TRUE(absl::IsNotFound((*store)->Get(ExactId(9, 9)).status()));

  for (uint32_t block = 0; block < kBlocks; ++block) {
    ASSERT_TRUE(PutBlock(store->get(), 1, block, kFrameBytes).ok());
  }
  EXPECT_EQ(ReadAll(store->get()).whole, kBlocks);
  store->reset();
  store = Open(folder);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(ReadAll(store->get()).whole, kBlocks);
}

TEST(DamageTest, AQuarantinedRecordStaysAwayAfterARestart) {
  ScratchFolder folder;
  Fill(folder);
  ChangeFiles(folder, ".blob", [](std::string* content) {
    std::fill(content->begin(), content->end(), 0);
  });
  auto store = Open(folder);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(ReadAll(store->get()).lost, kBlocks);
  store->reset();
  store = Open(folder);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Stats().records, 0u);
  EXPECT_EQ(
      (*store)->FindPrefix(ExactQuery(KeysOf(1, 1))).value().records.size(),
      0u);
}

TEST(DamageTest, PayloadFilesThatAreCutOffOrGoneAreMisses) {
  for (const bool gone : {false, true}) {
    ScratchFolder folder;
    Fill(folder);
    if (gone) {
      for (const auto& entry :
           std::filesystem::directory_iterator(folder.path())) {
        if (entry.path().extension() == ".blob")
          std::filesystem::remove(entry.path());
      }
    } else {
      ChangeFiles(folder, ".blob", [](std::string* content) {
        content->resize(content->size() / 2);
      });
    }
    auto store = Open(folder);
    ASSERT_TRUE(store.ok()) << store.status();
    const Reading reading = ReadAll(store->get());
    EXPECT_GT(reading.lost, kBlocks / 3) << gone;
    EXPECT_TRUE(PutBlock(store->get(), 2, 0, kFrameBytes).ok());
    EXPECT_TRUE((*store)->Get(ExactId(2, 0)).ok());
  }
}

TEST(DamageTest, FlippedBytesOfTheLogLoseRecordsButNeverGiveWrongOnes) {
  // What a killed process leaves is in the log: the copy is taken before
  // closing.
  ScratchFolder live, copy;
  auto store = Open(live);
  ASSERT_TRUE(store.ok()) << store.status();
  for (uint32_t block = 0; block < kBlocks; ++block) {
    ASSERT_TRUE(PutBlock(store->get(), 1, block, kFrameBytes).ok());
  }
  std::filesystem::copy(live.path(), copy.path(),
                        std::filesystem::copy_options::recursive);
  std::mt19937 random(11);
  const size_t bytes = ChangeFiles(copy, ".log", [&](std::string* content) {
    for (int i = 0; i < 5; ++i)
      (*content)[random() % content->size()] ^= 1 << (random() % 8);
  });
  ASSERT_GT(bytes, kBlocks * kFrameBytes / 2);
  auto damaged = Open(copy);
  ASSERT_TRUE(damaged.ok()) << damaged.status();
  const Reading reading = ReadAll(damaged->get());
  EXPECT_GT(reading.lost, 0u);
  EXPECT_GT(reading.whole, 0u);
}

// Tries for ten seconds: what a rewriting meets is put aside in the background,
// and refuses stores meanwhile.
bool PutSoon(BlockStore* store, uint32_t chain, uint32_t block, size_t bytes) {
  for (int i = 0; i < 1000; ++i) {
    if (PutBlock(store, chain, block, bytes).ok()) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

TEST(DamageTest, SpaceIsGivenBackAroundPayloadsThatCannotBeRead) {
  ScratchFolder folder;
  constexpr size_t kLarge = 256 << 10;
  constexpr uint64_t kSmallCapacity = 16 << 20;
  auto open = [&] {
    return RocksDbBlockStore::Open(
        {.path = folder.path(), .capacity_bytes = kSmallCapacity});
  };
  auto store = open();
  ASSERT_TRUE(store.ok()) << store.status();
  for (uint32_t block = 0; block < 50; ++block) {
    ASSERT_TRUE(PutBlock(store->get(), 1, block, kLarge).ok());
  }
  store->reset();
  ChangeFiles(folder, ".blob", [](std::string* content) {
    for (size_t at = 1000; at < content->size(); at += 50000)
      (*content)[at] ^= 0x40;
  });
  store = open();
  ASSERT_TRUE(store.ok()) << store.status();
  uint32_t refused = 0;
  for (uint32_t chain = 2; chain < 12; ++chain) {
    // Keeps the damaged chain's first blocks from being evicted, so that
    // rewriting meets them.
    ASSERT_TRUE((*store)->FindPrefix(ExactQuery(KeysOf(1, 20))).ok());
    for (uint32_t block = 0; block < 40; ++block) {
      refused += !PutSoon(store->get(), chain, block, kLarge);
    }
  }
  EXPECT_EQ(refused, 0u);
  EXPECT_LT((*store)->Stats().disk_bytes, 3 * kSmallCapacity);
}

}  // namespace
}  // namespace latentkv
