// kill -9 of the real daemon under a running client.
#include <atomic>

#include "client/config.h"
#include "gtest/gtest.h"
#include "tests/client/daemon_process.h"
#include "tests/client/test_pages.h"
#include "tests/client/wrapped_channel.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr absl::Duration kLong = absl::Seconds(30);
constexpr uint32_t kBlocks = 24;
constexpr uint64_t kTokens = kBlocks * 64;

class DaemonDeathTest : public ::testing::Test {
 protected:
  DaemonDeathTest()
      : pages_(geometry_, Layout::kEngineCpu, 128, kTokens / 128),
        ids_(pages_.PageIds(kTokens, 1)) {
    pages_.Compute(1, ids_, 0, kTokens, Values::kAnyBits);
    computed_ = pages_.memory();
  }
  std::unique_ptr<Client> Open(std::shared_ptr<CacheChannel> channel) {
    ClientConfig config;
    config.channel = std::move(channel);
    config.scope.model = Sha256({AsBytes("model")});
    config.codec = *Codec::Create(geometry_, nullptr);
    config.thread_count = 2;
    std::unique_ptr<Client> client = *MakeClient(std::move(config));
    EXPECT_TRUE(client->RegisterPages(pages_.cache()).ok());
    return client;
  }
  std::unique_ptr<Client> Open() {
    return Open(*MakeGrpcChannel(daemon_.address()));
  }
  uint64_t Store(Client* client) {
    auto job = client->Store({tokens_}, 0, kTokens, ids_);
    return job.ok() ? (*job)->Wait(-1, kLong)->token_count : 0;
  }
  uint64_t Load(Client* client) {
    pages_.Poison();
    auto job = client->Load({tokens_}, 0, kTokens, ids_, absl::Now() + kLong);
    return job.ok() ? (*job)->Wait(-1, kLong)->token_count : 0;
  }
  // After a restart, as soon as the breaker lets a call through.
  uint64_t MatchWhenBack(Client* client) {
    uint64_t matched = 0;
    for (absl::Time end = absl::Now() + kLong;
         matched == 0 && absl::Now() < end;) {
      matched = *client->Match({tokens_}, absl::Seconds(10),
                               absl::Now() + absl::Seconds(5));
      absl::SleepFor(absl::Milliseconds(20));
    }
    return matched;
  }
  // Tokens [0, good) are right: their bytes are those that were computed.
  void ExpectGood(uint64_t good) {
    for (size_t l = 0; l < geometry_.layers.size(); ++l) {
      for (uint64_t t = 0; t < good; ++t) {
        for (bool key : {true, false}) {
          const float now = pages_.Value(l, key, ids_, t, 0, 0);
          TestPages& right = Right();
          const float then = right.Value(l, key, ids_, t, 0, 0);
          ASSERT_EQ(memcmp(&now, &then, sizeof(now)), 0) << l << " " << t;
        }
      }
    }
  }
  TestPages& Right() {
    if (right_ == nullptr) {
      right_ = std::make_unique<TestPages>(geometry_, Layout::kEngineCpu, 128,
                                           kTokens / 128);
      right_->Compute(1, ids_, 0, kTokens, Values::kAnyBits);
    }
    return *right_;
  }

  // Blocks of two megabytes, so that three quarters of a stream are more than
  // the client receives ahead (8 MiB) and what the sockets and gRPC's windows
  // hold.
  const Geometry geometry_ = SmallGeometry(8, 8, 128);
  const std::vector<uint32_t> tokens_ = TestTokens(1, kTokens);
  DaemonProcess daemon_;
  TestPages pages_;
  const std::vector<uint64_t> ids_;
  std::vector<Bytes> computed_;
  std::unique_ptr<TestPages> right_;
};

TEST_F(DaemonDeathTest, InMidLoadLeavesWhatWasGoodAndTheNextLoadIsWhole) {
  auto channel =
      std::make_shared<WrappedChannel>(*MakeGrpcChannel(daemon_.address()));
  std::atomic<uint32_t> sections{0};
  std::atomic<uint32_t> kill_at{kBlocks * 2 + 3};
  channel->on_section = [&](FetchedSection*, const CallLimits&) {
    if (++sections == kill_at) daemon_.Kill();
  };
  std::unique_ptr<Client> client = Open(channel);
  ASSERT_EQ(Store(client.get()), kTokens);
  const uint64_t good = Load(client.get());
  EXPECT_LT(good, kTokens);
  EXPECT_LT(sections, kBlocks * 8);
  ExpectGood(good);
  EXPECT_EQ(client->Stats().load_failures, kBlocks - good / 64);
  EXPECT_TRUE(client->Stats().breaker_open);
  kill_at = 0;
  daemon_.Start();
  EXPECT_EQ(MatchWhenBack(client.get()), kTokens);
  EXPECT_EQ(Load(client.get()), kTokens);
  EXPECT_TRUE(pages_.memory() == computed_);
}

TEST_F(DaemonDeathTest, InMidStoreLosesWhatWasNotAcknowledgedAndNothingElse) {
  auto channel =
      std::make_shared<WrappedChannel>(*MakeGrpcChannel(daemon_.address()));
  std::atomic<int> acks{0};
  channel->on_ack = [&](StoreAck*) {
    if (++acks == 5) daemon_.Kill();
  };
  std::unique_ptr<Client> client = Open(channel);
  const uint64_t acknowledged = Store(client.get());
  EXPECT_GE(acknowledged, 5 * 64u);
  EXPECT_LT(acknowledged, kTokens);
  const ClientStats stats = client->Stats();
  EXPECT_EQ(stats.stored_blocks, acknowledged / 64);
  EXPECT_EQ(stats.stored_blocks + stats.store_failures + stats.dropped_blocks,
            kBlocks);
  daemon_.Start();
  const uint64_t matched = MatchWhenBack(client.get());
  EXPECT_GE(matched, acknowledged);
  EXPECT_EQ(Load(client.get()), matched);
  ExpectGood(matched);
}

}  // namespace
}  // namespace latentkv
