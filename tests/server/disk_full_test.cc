// The executable on a disk that refuses to store: it says so, reads go on, and
// storing goes on when there is space.
#include <sys/resource.h>

#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "tests/server/daemon_process.h"
#include "tests/storage/small_disk.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr size_t kSectionBytes = 128 << 10;

std::shared_ptr<const Bytes> Frame(uint32_t block) {
  return TestFrame(block, 2, kSectionBytes);
}

// Stores until the daemon refuses; how many were stored. The stream outlives
// the refusal.
uint32_t StoreUntilRefused(CacheChannel* channel) {
  std::vector<std::shared_ptr<const Bytes>> frames;
  for (uint32_t block = 0; block < 300; ++block) frames.push_back(Frame(block));
  absl::Status finish;
  const std::vector<absl::Status> statuses =
      StoreFrames(channel, frames, &finish);
  EXPECT_TRUE(finish.ok()) << finish;
  EXPECT_EQ(statuses.size(), frames.size());
  uint32_t stored = 0;
  while (stored < statuses.size() && statuses[stored].ok()) ++stored;
  EXPECT_LT(stored, frames.size());
  for (size_t i = stored; i < statuses.size(); ++i) {
    EXPECT_TRUE(statuses[i].ok() || absl::IsResourceExhausted(statuses[i]))
        << statuses[i];
  }
  return stored;
}

void ExpectPrefix(CacheChannel* channel, uint32_t count) {
  LookupQuery query;
  query.keys = TestKeys(count);
  auto answer = channel->Lookup(query, CallLimits::In(absl::Seconds(10)));
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_EQ(answer->records.size(), count);
  const FetchedFrames fetched = FetchFrames(channel, answer->records);
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  for (uint32_t block = 0; block < count; ++block)
    EXPECT_TRUE(fetched.frames[block] == *Frame(block)) << block;
}

// Tries for half a minute, as recovery happens in the background.
absl::Status StoreSoon(CacheChannel* channel, uint32_t block) {
  absl::Status status;
  for (int i = 0; i < 300; ++i) {
    status = StoreFrames(channel, {Frame(block)}).at(0);
    if (status.ok()) return status;
    absl::SleepFor(absl::Milliseconds(100));
  }
  return status;
}

std::vector<std::string> Flags(const std::string& folder) {
  return {
      "--data", folder + "/data", "--listen", "127.0.0.1:0", "--memory-bytes",
      "0",      "--log-level",    "warn"};
}

TEST(DaemonDiskFullTest, RefusesWithResourceExhaustedAndGoesOnReading) {
  SmallDisk disk(96);
  if (!disk.mounted()) GTEST_SKIP() << disk.reason();
  uint32_t stored = 0;
  {
    DaemonProcess daemon(Flags(disk.path()));
    const std::string address = daemon.Address();
    ASSERT_FALSE(address.empty());
    auto channel = *MakeGrpcChannel(address);
    stored = StoreUntilRefused(channel.get());
    EXPECT_GT(stored, 10u);
    ExpectPrefix(channel.get(), stored);
    const auto stats = channel->Stats(CallLimits::In(absl::Seconds(10)));
    // Else the end of `daemon` shows what it said.
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_GT(stats->stores_refused, 0u);
    RemoteSession session;
    session.name = "talk";
    session.record = std::string(1 << 20, 'x');
    EXPECT_TRUE(absl::IsResourceExhausted(
        channel->PutSession(session, CallLimits::In(absl::Seconds(10)))));

    disk.DropBallast();
    const absl::Status again = StoreSoon(channel.get(), stored);
    EXPECT_TRUE(again.ok()) << again;
    EXPECT_TRUE(
        channel->PutSession(session, CallLimits::In(absl::Seconds(10))).ok());
    ExpectPrefix(channel.get(), stored + 1);
    daemon.End(SIGKILL);
  }
  DaemonProcess daemon(Flags(disk.path()));
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel = *MakeGrpcChannel(address);
  ExpectPrefix(channel.get(), stored + 1);
  EXPECT_TRUE(
      channel->GetSession("talk", CallLimits::In(absl::Seconds(10))).ok());
}

TEST(DaemonDiskFullTest, AFileSizeLimitIsAFullDisk) {
  ScratchFolder folder;
  DaemonProcess daemon(Flags(folder.path()), [] {
    const rlimit limit = {5 << 20, 5 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
  });
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel = *MakeGrpcChannel(address);
  const uint32_t stored = StoreUntilRefused(channel.get());
  EXPECT_GT(stored, 10u);
  ExpectPrefix(channel.get(), stored);
  EXPECT_EQ(WEXITSTATUS(daemon.End(SIGTERM)), 0);
}

}  // namespace
}  // namespace latentkv
