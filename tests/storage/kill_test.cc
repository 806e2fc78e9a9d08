// kill -9 in the middle of stores: what was acknowledged is there and whole.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/storage/kill_frames.h"

namespace latentkv {
namespace {

// Above what all rounds store, so that nothing may be missing because it was evicted.
constexpr uint64_t kRoomy = uint64_t{16} << 30;
constexpr uint64_t kTight = 8 << 20;

int Rounds(int usual) {
  const char* rounds = std::getenv("LATENTKV_KILL_ROUNDS");
  return rounds != nullptr ? std::max(1, std::atoi(rounds)) : usual;
}

// Runs the writer for `life` after its first acknowledgement, kills it, and returns what it acknowledged.
std::vector<uint32_t> RunAndKill(const std::string& folder, uint32_t chain, uint64_t capacity, absl::Duration life) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string path = folder, number = std::to_string(chain), bytes = std::to_string(capacity);
  std::string program = KILL_WRITER_PATH;
  char* arguments[] = {program.data(), path.data(), number.data(), bytes.data(), nullptr};
  pid_t child = 0;
  EXPECT_EQ(posix_spawn(&child, program.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);

  std::vector<uint32_t> acknowledged;
  absl::Time end = absl::InfiniteFuture();
  uint32_t block = 0;
  bool killed = false;
  // Read to the end: the pipe may hold acknowledgements of the time before the kill.
  while (read(ends[0], &block, sizeof(block)) == sizeof(block)) {
    if (acknowledged.empty()) end = absl::Now() + life;
    acknowledged.push_back(block);
    if (!killed && absl::Now() >= end) killed = kill(child, SIGKILL) == 0;
  }
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the writer ended by itself, status " << status;
  return acknowledged;
}

TEST(KillTest, EveryAcknowledgedFrameIsThereAndWhole) {
  ScratchFolder folder;
  std::mt19937 random(1);
  std::vector<std::vector<uint32_t>> chains;
  const int rounds = Rounds(5);
  size_t frames = 0;
  for (int round = 0; round < rounds; ++round) {
    const absl::Duration life = absl::Milliseconds(random() % 300);
    chains.push_back(RunAndKill(folder.path(), round, kRoomy, life));
    frames += chains.back().size();
    ASSERT_FALSE(chains.back().empty());
    auto store = RocksDbBlockStore::Open({.path = folder.path(), .capacity_bytes = kRoomy});
    ASSERT_TRUE(store.ok()) << store.status();
    // All of this round, and some of every round before.
    for (int chain = 0; chain <= round; ++chain) {
      const size_t step = chain == round ? 1 : 1 + chains[chain].size() / 5;
      for (size_t i = 0; i < chains[chain].size(); i += step) {
        auto frame = (*store)->Get(ExactId(chain, chains[chain][i]));
        ASSERT_TRUE(frame.ok()) << "round " << round << ", chain " << chain << ", block " << i << ": "
                                << frame.status();
        ASSERT_TRUE(**frame == KillFrame(chain, chains[chain][i]));
      }
    }
    EXPECT_EQ((*store)->Stats().quarantined_records, 0u);
    EXPECT_GE((*store)->Stats().records, frames);
    // One frame a round may be stored without its acknowledgement.
    EXPECT_LE((*store)->Stats().records, frames + round + 1);
  }
  std::printf("%d kills, %zu acknowledged frames\n", rounds, frames);
}

TEST(KillTest, WhatAKillInTheMiddleOfEvictingLeavesIsWholeAndCountedRight) {
  ScratchFolder folder;
  std::mt19937 random(2);
  for (int round = 0; round < Rounds(3); ++round) {
    const auto acknowledged =
        RunAndKill(folder.path(), round, kTight, absl::Milliseconds(400 + random() % 400));
    ASSERT_FALSE(acknowledged.empty());
    auto store = RocksDbBlockStore::Open({.path = folder.path(), .capacity_bytes = kTight});
    ASSERT_TRUE(store.ok()) << store.status();
    uint64_t records = 0, bytes = 0;
    for (int chain = 0; chain <= round; ++chain) {
      for (uint32_t block = 0; block <= 20000; ++block) {
        auto frame = (*store)->Get(ExactId(chain, block));
        if (absl::IsNotFound(frame.status())) continue;
        ASSERT_TRUE(frame.ok()) << frame.status();
        ASSERT_TRUE(**frame == KillFrame(chain, block));
        ++records;
        bytes += (*frame)->size();
      }
    }
    EXPECT_EQ((*store)->Stats().records, records);
    EXPECT_EQ((*store)->Stats().stored_bytes, bytes);
    EXPECT_LE(bytes, kTight);
    EXPECT_GT(bytes, kTight / 2);
    EXPECT_TRUE((*store)->Get(ExactId(round, acknowledged.front())).ok());
  }
}

}  // namespace
}  // namespace latentkv
