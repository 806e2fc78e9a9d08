#include "storage/block_store.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/frames.h"

namespace latentkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr size_t kFrameBytes = 64 << 10;
constexpr uint64_t kMiB = 1 << 20;

class BlockStoreTest : public ::testing::Test {
 protected:
  BlockStoreTest() { Open(64 * kMiB, 0); }
  void Open(uint64_t capacity, uint64_t memory) {
    store_.reset();
    auto store = RocksDbBlockStore::Open({.path = folder_.path(),
                                          .capacity_bytes = capacity,
                                          .memory_tier_bytes = memory,
                                          .clock = &clock_});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  // Frame and section table of a block.
  static uint64_t StoredBytes() { return MakeFrame(0, 0, kFrameBytes).size(); }
  absl::Status Put(uint32_t chain, uint32_t block) {
    return PutBlock(store_.get(), chain, block, kFrameBytes);
  }
  // Where others take the cores from the thread that gives space back, a store
  // is refused and told to come again.
  void PutPatiently(uint32_t chain, uint32_t block) {
    absl::Status status = Put(chain, block);
    for (int again = 0; again < 60 && absl::IsResourceExhausted(status);
         ++again)
      status = Put(chain, block);
    ASSERT_TRUE(status.ok()) << chain << "/" << block << ": " << status;
  }
  void PutChain(uint32_t chain, uint32_t count) {
    for (uint32_t block = 0; block < count; ++block) PutPatiently(chain, block);
  }
  size_t Found(uint32_t chain, uint32_t count, uint32_t lease_ms = 0) {
    const std::vector<Digest> keys = KeysOf(chain, count);
    return store_->FindPrefix(ExactQuery(keys, lease_ms))
        .value()
        .records.size();
  }
  void ExpectFrame(uint32_t chain, uint32_t block) {
    auto frame = store_->Get(ExactId(chain, block));
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_TRUE(IsBlock(*frame, chain, block, kFrameBytes));
  }

  ScratchFolder folder_;
  ManualClock clock_;
  std::unique_ptr<BlockStore> store_;
};

TEST_F(BlockStoreTest, GivesBackTheBytesThatWereStored) {
  PutChain(1, 3);
  for (uint32_t block = 0; block < 3; ++block) ExpectFrame(1, block);
  EXPECT_TRUE(absl::IsNotFound(store_->Get(ExactId(1, 3)).status()));
  EXPECT_TRUE(absl::IsNotFound(
      store_->Get({KeyOf(1, 0), {KeyOf(9, 9), 0.5f}}).status()));
}

TEST_F(BlockStoreTest, RefusesFramesThatDoNotVerify) {
  Bytes frame = MakeFrame(1, 0, kFrameBytes);
  frame.back() ^= 1;
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Put(frame, {}, false)));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Put({}, {}, false)));
  EXPECT_EQ(store_->Stats().records, 0u);
  EXPECT_EQ(store_->Stats().stores_refused, 2u);
}

TEST_F(BlockStoreTest, StoringAgainKeepsOneRecord) {
  ASSERT_TRUE(Put(1, 0).ok());
  EXPECT_TRUE(Put(1, 0).ok());
  EXPECT_TRUE(PutBlock(store_.get(), 1, 0, kFrameBytes, true).ok());
  EXPECT_EQ(store_->Stats().records, 1u);
  EXPECT_EQ(store_->Stats().stored_bytes, StoredBytes());
}

TEST_F(BlockStoreTest, AccountingAndFramesAreRightAfterARestart) {
  PutChain(1, 5);
  ASSERT_EQ(
      store_->Forget(std::vector<Digest>{KeyOf(1, 4), KeyOf(1, 4), KeyOf(7, 7)})
          .value(),
      1u);
  Open(64 * kMiB, 0);
  EXPECT_EQ(store_->Stats().records, 4u);
  EXPECT_EQ(store_->Stats().stored_bytes, 4 * StoredBytes());
  EXPECT_GE(store_->Stats().disk_bytes, 4 * StoredBytes());
  EXPECT_EQ(Found(1, 5), 4u);
  for (uint32_t block = 0; block < 4; ++block) ExpectFrame(1, block);
}

TEST_F(BlockStoreTest, OrderOfUseIsRightAfterARestart) {
  PutChain(1, 4);
  PutChain(2, 4);
  EXPECT_EQ(Found(1, 4), 4u);
  Open(8 * StoredBytes(), 0);
  PutChain(3, 4);
  EXPECT_EQ(Found(2, 4), 0u);
  EXPECT_EQ(Found(1, 4), 4u);
}

TEST_F(BlockStoreTest, EvictionTakesTheEndsOfTheChainUsedLongestAgo) {
  Open(10 * StoredBytes(), 0);
  PutChain(1, 5);
  PutChain(2, 5);
  EXPECT_EQ(Found(1, 5), 5u);
  PutChain(3, 2);
  EXPECT_EQ(Found(2, 5), 3u);
  EXPECT_EQ(Found(1, 5), 5u);
  EXPECT_EQ(store_->Stats().evicted_records, 2u);
  EXPECT_LE(store_->Stats().stored_bytes, 10 * StoredBytes());
  EXPECT_TRUE(absl::IsNotFound(store_->Get(ExactId(2, 4)).status()));
}

TEST_F(BlockStoreTest, ASmallerCapacityThanBeforeIsKeptFromTheStart) {
  PutChain(1, 6);
  PutChain(2, 6);
  Open(7 * StoredBytes(), 0);
  EXPECT_LE(store_->Stats().stored_bytes, 7 * StoredBytes());
  EXPECT_EQ(Found(1, 6), 1u);
  EXPECT_EQ(Found(2, 6), 6u);
}

TEST_F(BlockStoreTest, PrefixEndsAtAForgottenBlock) {
  PutChain(1, 4);
  EXPECT_EQ(store_->Forget(std::vector<Digest>{KeyOf(1, 1)}).value(), 1u);
  EXPECT_EQ(Found(1, 4), 1u);
  EXPECT_EQ(store_->Stats().hits, 1u);
  EXPECT_EQ(store_->Stats().misses, 3u);
  ASSERT_TRUE(Put(1, 1).ok());
  EXPECT_EQ(Found(1, 4), 4u);
}

TEST_F(BlockStoreTest, LeasedFramesAreNotEvictedUntilTheLeaseEnds) {
  Open(3 * StoredBytes(), 0);
  PutChain(1, 3);
  EXPECT_EQ(Found(1, 3, 1000), 3u);
  EXPECT_TRUE(absl::IsResourceExhausted(Put(2, 0)));
  EXPECT_EQ(Found(1, 3), 3u);
  clock_.Advance(absl::Milliseconds(1000));
  EXPECT_TRUE(Put(2, 0).ok());
  EXPECT_EQ(Found(1, 3), 2u);
}

TEST_F(BlockStoreTest, AFrameLargerThanTheCapacityIsRefusedAndEvictsNothing) {
  Open(2 * StoredBytes(), 0);
  PutChain(1, 2);
  EXPECT_TRUE(
      absl::IsResourceExhausted(PutBlock(store_.get(), 2, 0, 3 * kFrameBytes)));
  EXPECT_EQ(Found(1, 2), 2u);
}

TEST_F(BlockStoreTest, MemoryTierStaysWithinItsBytesAndGivesTheSameFrames) {
  Open(64 * kMiB, 2 * StoredBytes());
  PutChain(1, 6);
  // Only what is read is worth the memory.
  EXPECT_EQ(store_->Stats().memory_bytes, 0u);
  for (int round = 0; round < 2; ++round) {
    for (uint32_t block = 0; block < 6; ++block) ExpectFrame(1, block);
    EXPECT_EQ(store_->Stats().memory_bytes, 2 * StoredBytes());
  }
  EXPECT_EQ(store_->Forget(KeysOf(1, 6)).value(), 6u);
  EXPECT_EQ(store_->Stats().memory_bytes, 0u);
  EXPECT_TRUE(absl::IsNotFound(store_->Get(ExactId(1, 5)).status()));
}

TEST_F(BlockStoreTest, NamedValuesKeepToTheirSpaceAndSurviveARestart) {
  const Bytes large(300 << 10, 7);
  ASSERT_TRUE(store_->PutNamed("session", "a", AsBytes("first")).ok());
  ASSERT_TRUE(store_->PutNamed("session", "b", AsBytes("")).ok());
  ASSERT_TRUE(store_->PutNamed("sessions", "c", large).ok());
  ASSERT_TRUE(store_->PutNamed("session", "a", AsBytes("second")).ok());
  Open(64 * kMiB, 0);
  EXPECT_THAT(store_->ListNamed("session").value(), ElementsAre("a", "b"));
  EXPECT_EQ(AsText(store_->GetNamed("session", "a").value()), "second");
  EXPECT_EQ(store_->GetNamed("sessions", "c").value(), large);
  EXPECT_TRUE(absl::IsNotFound(store_->GetNamed("session", "c").status()));
  ASSERT_TRUE(store_->DeleteNamed("session", "a").ok());
  EXPECT_THAT(store_->ListNamed("session").value(), ElementsAre("b"));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->PutNamed("", "a", {})));
}

TEST_F(BlockStoreTest, NamedValuesLargerThanTheCapacityLeaveFramesTheirRoom) {
  Open(4 * kMiB, 0);
  ASSERT_TRUE(store_->PutNamed("basis", "large", Bytes(48 * kMiB, 7)).ok());
  for (uint32_t chain = 0; chain < 4; ++chain) PutChain(chain, 50);
  EXPECT_GT(store_->Stats().stored_bytes, 3 * kMiB);
  ExpectFrame(3, 0);
  EXPECT_EQ(store_->GetNamed("basis", "large").value().size(), 48 * kMiB);
}

TEST_F(BlockStoreTest, DiskStaysNearTheCapacityWhileManyTimesOfItAreStored) {
  const uint64_t capacity = 32 * kMiB;
  Open(capacity, 0);
  uint64_t most = 0;
  // Every fourth chain is used again and again, so that files to be given back
  // hold live frames too.
  for (uint32_t chain = 0; chain < 96; ++chain) {
    for (uint32_t block = 0; block < 32; ++block) PutPatiently(chain, block);
    for (uint32_t kept = 0; kept <= std::min(chain, 24u); kept += 4)
      Found(kept, 32);
    most = std::max(most, store_->Stats().disk_bytes);
  }
  const StoreStats stats = store_->Stats();
  EXPECT_LE(stats.stored_bytes, capacity);
  EXPECT_GT(stats.stored_bytes, capacity * 9 / 10);
  EXPECT_GT(stats.evicted_records, 2000u);
  EXPECT_LT(most, 2 * capacity);
  for (uint32_t kept = 0; kept <= 24; kept += 4) {
    EXPECT_EQ(Found(kept, 32), 32u) << kept;
    for (uint32_t block = 0; block < 32; ++block) ExpectFrame(kept, block);
  }
}

TEST_F(BlockStoreTest, ThreadsStoreFindAndReadAtOnce) {
  Open(8 * kMiB, kMiB);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (uint32_t i = 0; i < 100; ++i) {
        const uint32_t chain = t * 10 + i / 20, block = i % 20;
        EXPECT_TRUE(Put(chain, block).ok());
        Found((t + 1) % 4 * 10 + i / 20, 20, i % 3);
        auto frame = store_->Get(ExactId(chain, block));
        if (frame.ok()) {
          EXPECT_TRUE(IsBlock(*frame, chain, block, kFrameBytes));
        } else {
          EXPECT_TRUE(absl::IsNotFound(frame.status())) << frame.status();
        }
        if (i % 10 == 0) {
          EXPECT_TRUE(
              store_->Forget(std::vector<Digest>{KeyOf(chain, 0)}).ok());
        }
        clock_.Advance(absl::Milliseconds(1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.quarantined_records, 0u);
  Open(8 * kMiB, 0);
  EXPECT_EQ(store_->Stats().records, stats.records);
  EXPECT_EQ(store_->Stats().stored_bytes, stats.stored_bytes);
}

TEST_F(BlockStoreTest, EveryCallIsUnavailableAfterClose) {
  PutChain(1, 1);
  EXPECT_TRUE(store_->Close().ok());
  EXPECT_TRUE(store_->Close().ok());
  EXPECT_TRUE(absl::IsUnavailable(Put(1, 1)));
  EXPECT_TRUE(absl::IsUnavailable(store_->Get(ExactId(1, 0)).status()));
  EXPECT_TRUE(absl::IsUnavailable(store_->FindPrefix({}).status()));
  EXPECT_TRUE(absl::IsUnavailable(store_->Forget({}).status()));
  EXPECT_TRUE(absl::IsUnavailable(store_->PutNamed("s", "n", {})));
  EXPECT_TRUE(absl::IsUnavailable(store_->GetNamed("s", "n").status()));
  EXPECT_TRUE(absl::IsUnavailable(store_->ListNamed("s").status()));
  EXPECT_TRUE(absl::IsUnavailable(store_->DeleteNamed("s", "n")));
  store_->ReleaseLease(1);
}

TEST_F(BlockStoreTest, OneFolderServesOneStoreAtATime) {
  auto second =
      RocksDbBlockStore::Open({.path = folder_.path(), .capacity_bytes = kMiB});
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_TRUE(absl::IsInvalidArgument(
      RocksDbBlockStore::Open({.path = folder_.path()}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      RocksDbBlockStore::Open({.path = "", .capacity_bytes = kMiB}).status()));
}

}  // namespace
}  // namespace latentkv
