// kill -9 of the executable in the middle of stores: after each restart, what
// it acknowledged is there and whole.
#include <atomic>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "tests/server/daemon_process.h"
#include "tests/storage/scratch_folder.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr int kKills = 50;

CallLimits Patient() { return CallLimits::In(absl::Seconds(60)); }

// Of many sizes, so that records of the log begin and end everywhere in its
// blocks.
std::shared_ptr<const Bytes> KillFrame(uint32_t chain, uint32_t block) {
  return TestFrame(block, 2, 500 + (block * 7919u + chain * 104729u) % 60000,
                   chain);
}

class KillTest : public ::testing::Test {
 protected:
  // Starts the daemon, which must come up on what the last kill left.
  void StartDaemon(const std::string& capacity) {
    daemon_ = std::make_unique<DaemonProcess>(
        std::vector<std::string>{"--data", folder_.path() + "/data", "--listen",
                                 "127.0.0.1:0", "--capacity-bytes", capacity});
    const std::string address = daemon_->Address();
    ASSERT_FALSE(address.empty());
    channel_ = *MakeGrpcChannel(address);
  }

  // Stores a chain, block behind block without waiting, and kills the daemon
  // `life` after it acknowledged `count` blocks. How many it acknowledged, and
  // how many were sent at most.
  struct Chain {
    uint32_t acknowledged = 0, sent = 0;
  };
  Chain StoreUntilKilled(uint32_t chain, uint32_t count, absl::Duration life) {
    Chain stored;
    auto stream = channel_->OpenStore(Patient());
    std::atomic<uint32_t> sent = 0;
    std::thread sender([&] {
      for (uint32_t block = 0; block < kChainBlocksMax; ++block) {
        const Digest parent = block == 0 ? Digest{} : TestKey(block - 1, chain);
        ++sent;
        if (!stream->Send(
                {block, parent, block % 16 == 0, KillFrame(chain, block)}))
          return;
      }
    });
    std::thread killer;
    StoreAck ack;
    while (stream->ReadAck(&ack)) {
      EXPECT_TRUE(ack.status.ok()) << ack.status;
      EXPECT_EQ(ack.sequence, stored.acknowledged);
      if (++stored.acknowledged != count) continue;
      killer = std::thread([&] {
        absl::SleepFor(life);
        const int status = daemon_->End(SIGKILL);
        EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            << "the daemon ended by itself: " << status;
      });
    }
    EXPECT_FALSE(stream->Finish().ok());
    sender.join();
    if (killer.joinable()) killer.join();
    stored.sent = sent;
    return stored;
  }

  // Fetches blocks [0, count) of a chain, whether found or not; the bytes of
  // those that are there, each of them whole.
  struct Found {
    uint64_t records = 0, bytes = 0;
  };
  Found FetchWhole(uint32_t chain, uint32_t count) {
    std::vector<RemoteRecord> records;
    for (uint32_t block = 0; block < count; ++block)
      records.push_back({TestKey(block, chain), Encoding::Exact()});
    const FetchedFrames fetched = FetchFrames(channel_.get(), records);
    EXPECT_TRUE(fetched.status.ok()) << fetched.status;
    Found found;
    for (uint32_t block = 0; block < count; ++block) {
      if (fetched.missing[block]) continue;
      EXPECT_TRUE(fetched.frames[block] == *KillFrame(chain, block))
          << chain << "/" << block;
      ++found.records;
      found.bytes += fetched.frames[block].size();
    }
    return found;
  }

  uint32_t PrefixOf(uint32_t chain, uint32_t count) {
    LookupQuery query;
    query.keys = TestKeys(count, chain);
    auto answer = channel_->Lookup(query, Patient());
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? answer->records.size() : 0;
  }

  ScratchFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<CacheChannel> channel_;
  std::mt19937 random_{1};
};

TEST_F(KillTest, EveryAcknowledgedFrameIsThereAndWhole) {
  std::vector<Chain> chains;
  uint64_t acknowledged = 0;
  for (int round = 0; round < kKills; ++round) {
    // Above what all rounds store, so that nothing may be missing because it
    // was evicted.
    StartDaemon("16GiB");
    for (uint32_t chain = 0; chain < chains.size(); ++chain) {
      ASSERT_GE(PrefixOf(chain, chains[chain].sent), chains[chain].acknowledged)
          << "round " << round;
    }
    if (round > 0) {
      ASSERT_GE(FetchWhole(round - 1, chains.back().sent).records,
                chains.back().acknowledged);
    }
    chains.push_back(
        StoreUntilKilled(round, 1, absl::Milliseconds(random_() % 200)));
    ASSERT_GT(chains.back().acknowledged, 0u);
    acknowledged += chains.back().acknowledged;
  }
  StartDaemon("16GiB");
  uint64_t records = 0;
  for (uint32_t chain = 0; chain < chains.size(); ++chain) {
    const uint64_t whole = FetchWhole(chain, chains[chain].sent).records;
    EXPECT_GE(whole, chains[chain].acknowledged);
    records += whole;
  }
  auto stats = channel_->Stats(Patient());
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->quarantined_records, 0u);
  EXPECT_EQ(stats->records, records);
  std::printf("%d kills, %lu acknowledged frames\n", kKills, acknowledged);
}

TEST_F(KillTest, WhatAKillInTheMiddleOfEvictingLeavesIsWholeAndCountedRight) {
  std::vector<Chain> chains;
  for (int round = 0; round < 3; ++round) {
    StartDaemon("8MiB");
    // Three times the capacity, and on.
    chains.push_back(
        StoreUntilKilled(round, 800, absl::Milliseconds(random_() % 100)));
    ASSERT_GE(chains.back().acknowledged, 800u);
    StartDaemon("8MiB");
    Found all;
    for (uint32_t chain = 0; chain < chains.size(); ++chain) {
      const Found found = FetchWhole(chain, chains[chain].sent);
      all.records += found.records;
      all.bytes += found.bytes;
    }
    auto stats = channel_->Stats(Patient());
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_EQ(stats->records, all.records);
    EXPECT_EQ(stats->stored_bytes, all.bytes);
    EXPECT_EQ(stats->quarantined_records, 0u);
    EXPECT_LE(all.bytes, 8u << 20);
    EXPECT_GT(all.bytes, 4u << 20);
    daemon_->End(SIGKILL);
  }
}

}  // namespace
}  // namespace latentkv
