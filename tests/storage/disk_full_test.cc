// A disk that refuses to store: puts say so, reads go on, and storing goes on
// when there is space again.
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "storage/database.h"
#include "tests/storage/frames.h"
#include "tests/storage/small_disk.h"

namespace latentkv {
namespace {

constexpr size_t kFrameBytes = 256 << 10;

// How many of `count` blocks of chain 1 from `first` on were stored.
uint32_t PutBlocks(BlockStore* store, uint32_t first, uint32_t count,
                   absl::Status* refusal) {
  uint32_t stored = 0;
  for (uint32_t block = first; block < first + count; ++block) {
    absl::Status status = PutBlock(store, 1, block, kFrameBytes);
    if (status.ok()) {
      ++stored;
    } else {
      *refusal = status;
      break;
    }
  }
  return stored;
}

void ExpectBlocks(BlockStore* store, uint32_t count) {
  for (uint32_t block = 0; block < count; ++block) {
    auto frame = store->Get(ExactId(1, block));
    ASSERT_TRUE(frame.ok()) << block << ": " << frame.status();
    EXPECT_TRUE(IsBlock(*frame, 1, block, kFrameBytes)) << block;
  }
}

// Tries for half a minute, as recovery happens in the background.
absl::Status PutSoon(BlockStore* store, uint32_t block) {
  absl::Status status;
  for (int i = 0; i < 300; ++i) {
    status = PutBlock(store, 1, block, kFrameBytes);
    if (status.ok()) return status;
    absl::SleepFor(absl::Milliseconds(100));
  }
  return status;
}

absl::StatusOr<std::unique_ptr<BlockStore>> Open(const std::string& path) {
  return RocksDbBlockStore::Open(
      {.path = path, .capacity_bytes = uint64_t{1} << 30});
}

TEST(DiskFullTest, ReadsGoOnAndStoringRecoversWhenThereIsSpaceAgain) {
  SmallDisk disk(96);
  if (!disk.mounted()) GTEST_SKIP() << disk.reason();
  auto store = Open(disk.path() + "/data");
  ASSERT_TRUE(store.ok()) << store.status();
  absl::Status refusal;
  const uint32_t stored = PutBlocks(store->get(), 0, 400, &refusal);
  EXPECT_TRUE(absl::IsResourceExhausted(refusal)) << refusal;
  EXPECT_GT(stored, 10u);
  EXPECT_LT(stored, 200u);
  ExpectBlocks(store->get(), stored);
  EXPECT_GT((*store)->Stats().stores_refused, 0u);
  // A line that RocksDB writes to its own file of messages when the disk is
  // full is its last but one: the next asserts.
  EXPECT_FALSE(std::filesystem::exists(disk.path() + "/data/LOG"));
  // Maintenance meets the full disk a few times.
  absl::SleepFor(absl::Seconds(2));
  ExpectBlocks(store->get(), stored);

  disk.DropBallast();
  absl::Status again = PutSoon(store->get(), stored);
  EXPECT_TRUE(again.ok()) << again;
  ExpectBlocks(store->get(), stored + 1);
  store->reset();
  store = Open(disk.path() + "/data");
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Stats().records, stored + 1);
  ExpectBlocks(store->get(), stored + 1);
}

// Some of these run into assertions of RocksDB's where a write to its log
// failed just before.
TEST(DiskFullTest, WhatFollowsARefusedWriteIsRefusedToo) {
  SmallDisk disk(96);
  if (!disk.mounted()) GTEST_SKIP() << disk.reason();
  auto database = Database::Open(disk.path() + "/data", uint64_t{1} << 30);
  ASSERT_TRUE(database.ok()) << database.status();
  const Bytes value(kFrameBytes, 7);
  absl::Status status;
  for (uint64_t i = 0; i < 400 && status.ok(); ++i) {
    status = (*database)->Write({{Family::kPayload, SequenceKey(i), value}});
  }
  ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(absl::IsResourceExhausted((*database)->Sync()));
  EXPECT_TRUE(
      absl::IsResourceExhausted((*database)->Reclaim([] { return false; })));
  EXPECT_TRUE((*database)->Read(Family::kPayload, SequenceKey(0)).ok());
  EXPECT_TRUE((*database)->Close().ok());
}

TEST(DiskFullTest, AFileSizeLimitIsAFullDisk) {
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  ScratchFolder folder;
  auto store = Open(folder.path());
  ASSERT_TRUE(store.ok()) << store.status();
  rlimit small = before;
  small.rlim_cur = 5 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  absl::Status refusal;
  const uint32_t stored = PutBlocks(store->get(), 0, 400, &refusal);
  EXPECT_TRUE(absl::IsResourceExhausted(refusal)) << refusal;
  EXPECT_GT(stored, 10u);
  EXPECT_LT(stored, 25u);
  ExpectBlocks(store->get(), stored);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  absl::Status again = PutSoon(store->get(), stored);
  EXPECT_TRUE(again.ok()) << again;
  ExpectBlocks(store->get(), stored + 1);
  store->reset();
  store = Open(folder.path());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Stats().records, stored + 1);
  ExpectBlocks(store->get(), stored + 1);
}

}  // namespace
}  // namespace latentkv
