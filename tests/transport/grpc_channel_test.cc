// The channel against the real daemon: stopped, killed, started again, on both
// kinds of sockets.
#include "transport/grpc_channel.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <future>

#include "core/limits.h"
#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "tests/server/daemon_process.h"
#include "tests/storage/scratch_folder.h"

namespace latentkv {
namespace {

// Long enough for any call that is answered at all.
CallLimits Patient(CancelToken* cancel = nullptr) {
  return CallLimits::In(absl::Seconds(60), cancel);
}
CallLimits Brief() { return CallLimits::In(absl::Milliseconds(200)); }

using Call = std::function<absl::Status(CacheChannel*, const CallLimits&)>;

absl::Status StoreOne(CacheChannel* channel, const CallLimits& limits) {
  auto stream = channel->OpenStore(limits);
  StoreAck ack;
  // More than fits the socket when nobody reads it.
  if (stream->Send({1, Digest{}, false, TestFrame(0, 1, 8 << 20)}))
    stream->ReadAck(&ack);
  stream->SendDone();
  while (stream->ReadAck(&ack)) {
  }
  return stream->Finish();
}

absl::Status LookupOne(CacheChannel* channel, const CallLimits& limits) {
  LookupQuery query;
  query.keys = TestKeys(1);
  return channel->Lookup(query, limits).status();
}

absl::Status FetchOne(CacheChannel* channel, const CallLimits& limits) {
  const std::vector<RemoteRecord> records = {{TestKey(0), Encoding::Exact()}};
  return channel->Fetch(records, 0, limits,
                        [](const FetchedSection&) { return true; });
}

// One of each form of call.
const std::vector<std::pair<const char*, Call>>& Calls() {
  static const std::vector<std::pair<const char*, Call>> calls = {
      {"store", StoreOne},
      {"lookup", LookupOne},
      {"fetch", FetchOne},
      {"put session",
       [](CacheChannel* channel, const CallLimits& limits) {
         RemoteSession session;
         session.name = "talk";
         return channel->PutSession(session, limits);
       }},
      {"put basis",
       [](CacheChannel* channel, const CallLimits& limits) {
         return channel->PutBasis(Bytes(3000000, 7), limits).status();
       }},
      {"get basis",
       [](CacheChannel* channel, const CallLimits& limits) {
         return channel->GetBasis(Sha256({Bytes(3000000, 7)}), limits).status();
       }},
  };
  return calls;
}

class GrpcChannelTest : public ::testing::TestWithParam<bool> {
 protected:
  GrpcChannelTest() {
    StartDaemon(GetParam() ? "unix:" + folder_.path() + "/socket"
                           : "127.0.0.1:0");
  }
  void StartDaemon(const std::string& address) {
    daemon_ = std::make_unique<DaemonProcess>(std::vector<std::string>{
        "--data", folder_.path() + "/data", "--listen", address});
    address_ = daemon_->Address();
    EXPECT_FALSE(address_.empty());
  }

  ScratchFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::string address_;
};

INSTANTIATE_TEST_SUITE_P(Sockets, GrpcChannelTest, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Unix" : "Tcp";
                         });

TEST_P(GrpcChannelTest, EveryCallKeepsItsDeadlineWhenTheDaemonHangs) {
  auto channel = *MakeGrpcChannel(address_);
  for (const auto& [name, call] : Calls())
    ASSERT_TRUE(call(channel.get(), Patient()).ok()) << name;
  daemon_->Signal(SIGSTOP);
  for (const auto& [name, call] : Calls()) {
    EXPECT_EQ(call(channel.get(), Brief()).code(),
              absl::StatusCode::kDeadlineExceeded)
        << name;
  }
  auto unconnected = *MakeGrpcChannel(address_);
  EXPECT_TRUE(absl::IsDeadlineExceeded(LookupOne(unconnected.get(), Brief())));
  daemon_->Signal(SIGCONT);
  for (const auto& [name, call] : Calls())
    EXPECT_TRUE(call(channel.get(), Patient()).ok()) << name;
}

TEST_P(GrpcChannelTest, CancellingEndsCallsThatRunAndThoseToCome) {
  auto channel = *MakeGrpcChannel(address_);
  ASSERT_TRUE(LookupOne(channel.get(), Patient()).ok());
  daemon_->Signal(SIGSTOP);
  for (const auto& [name, call] : Calls()) {
    CancelToken token;
    auto running = std::async(std::launch::async, [&, &call = call] {
      return call(channel.get(), Patient(&token));
    });
    absl::SleepFor(absl::Milliseconds(50));
    token.Cancel();
    EXPECT_TRUE(absl::IsCancelled(running.get())) << name;
    EXPECT_EQ(call(channel.get(), Patient(&token)).code(),
              absl::StatusCode::kCancelled)
        << name;
  }
  daemon_->Signal(SIGCONT);
  EXPECT_TRUE(LookupOne(channel.get(), Patient()).ok());
}

TEST_P(GrpcChannelTest, ADaemonThatWasKilledIsUnavailableAndFoundAgain) {
  auto channel = *MakeGrpcChannel(address_);
  ASSERT_TRUE(StoreOne(channel.get(), Patient()).ok());
  daemon_->End(SIGKILL);
  for (const auto& [name, call] : Calls()) {
    EXPECT_EQ(call(channel.get(), Patient()).code(),
              absl::StatusCode::kUnavailable)
        << name;
  }
  StartDaemon(address_);
  absl::Status status = absl::UnavailableError("");
  while (absl::IsUnavailable(status))
    status = FetchOne(channel.get(), Patient());
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(GrpcChannelTest, AKillInTheMiddleOfAFetchEndsItWithAnError) {
  auto channel = *MakeGrpcChannel(address_);
  ASSERT_TRUE(
      StoreFrames(channel.get(), {TestFrame(0, 4, 16 << 20)}).at(0).ok());
  const std::vector<RemoteRecord> records = {{TestKey(0), Encoding::Exact()}};
  uint32_t sections = 0;
  const absl::Status status =
      channel->Fetch(records, 0, Patient(), [&](const FetchedSection&) {
        if (sections++ == 0) daemon_->End(SIGKILL);
        return true;
      });
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LT(sections, 4u);
}

TEST_P(GrpcChannelTest, AReceiverCanStopAFetch) {
  auto channel = *MakeGrpcChannel(address_);
  ASSERT_TRUE(
      StoreFrames(channel.get(), {TestFrame(0, 4, 4 << 20)}).at(0).ok());
  const std::vector<RemoteRecord> records = {{TestKey(0), Encoding::Exact()}};
  uint32_t sections = 0;
  const absl::Status status =
      channel->Fetch(records, 0, Patient(), [&](const FetchedSection&) {
        ++sections;
        return false;
      });
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(sections, 1u);
  EXPECT_TRUE(FetchOne(channel.get(), Patient()).ok());
}

TEST_P(GrpcChannelTest, TheLargestFrameGoesThroughAndALargerOneIsRefused) {
  auto channel = *MakeGrpcChannel(address_);
  const auto largest = TestFrame(0, 1, kFrameBytesMax - FrameHeaderBytes(1));
  ASSERT_EQ(largest->size(), kFrameBytesMax);
  const absl::Status stored = StoreFrames(channel.get(), {largest}).at(0);
  ASSERT_TRUE(stored.ok()) << stored;
  const FetchedFrames fetched =
      FetchFrames(channel.get(), {{TestKey(0), Encoding::Exact()}});
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  EXPECT_TRUE(fetched.frames[0] == *largest);

  auto larger = std::make_shared<const Bytes>(kFrameBytesMax + 1);
  EXPECT_TRUE(
      absl::IsInvalidArgument(StoreFrames(channel.get(), {larger}).at(0)));
}

TEST(GrpcChannelAddressTest, NobodyThereIsUnavailable) {
  ScratchFolder folder;
  for (const std::string& address :
       {std::string("127.0.0.1:1"), "unix:" + folder.path() + "/nobody"}) {
    auto channel = *MakeGrpcChannel(address);
    for (const auto& [name, call] : Calls()) {
      EXPECT_EQ(call(channel.get(), Patient()).code(),
                absl::StatusCode::kUnavailable)
          << address << " " << name;
    }
  }
}

TEST(GrpcChannelAddressTest,
     SomebodyWhoNeverAnswersIsWaitedForUntilTheDeadline) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in bound{};
  bound.sin_family = AF_INET;
  bound.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(bound);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&bound), length), 0);
  ASSERT_EQ(listen(listener, 8), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&bound), &length),
            0);
  auto channel =
      *MakeGrpcChannel("127.0.0.1:" + std::to_string(ntohs(bound.sin_port)));
  for (const auto& [name, call] : Calls()) {
    EXPECT_EQ(call(channel.get(), Brief()).code(),
              absl::StatusCode::kDeadlineExceeded)
        << name;
  }
  close(listener);
}

TEST(GrpcChannelAddressTest, AddressesOfAnotherFormAreRefused) {
  for (const char* address : {"", "localhost", ":7430", "127.0.0.1:",
                              "127.0.0.1:0", "127.0.0.1:65536", "unix:"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MakeGrpcChannel(address).status()))
        << address;
  }
}

}  // namespace
}  // namespace latentkv
