// Frames handed over a link that fails, and over real gRPC: none is lost, none
// comes twice.
#include "transport/handoff.h"

#include <grpcpp/grpcpp.h>

#include <future>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/scratch_folder.h"
#include "tests/transport/frame_log.h"
#include "tests/transport/memory_link.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;
using Sent = std::future<absl::StatusOr<HandoffReport>>;

constexpr absl::Duration kPatience = absl::Milliseconds(300);
CallLimits Patient(CancelToken* cancel = nullptr) {
  return CallLimits::In(absl::Seconds(60), cancel);
}

class HandoffTest : public ::testing::Test {
 protected:
  HandoffTest() { StartServer(); }
  void StartServer() {
    service_ = std::make_unique<PeerService>();
    server_ =
        *PeerServer::Start("unix:" + folder_.path() + "/peer", service_.get());
    if (client_ == nullptr) client_ = *PeerClient::Open(server_->address());
  }
  void StopServer() {
    server_.reset();
    service_.reset();
  }
  ExpectedTransfer Expect(FrameSink* sink, DeviceLink* link = nullptr,
                          uint64_t held = 0) {
    return *service_->Expect({"t", held, sink, link, kPatience});
  }
  Sent Send(const std::vector<HandoffFrame>& frames, DeviceLink* link = nullptr,
            CallLimits limits = Patient()) {
    return std::async(std::launch::async, [=, this] {
      return client_->HandOff({"t", frames, link, kPatience}, limits);
    });
  }

  ScratchFolder folder_;
  std::unique_ptr<PeerService> service_;
  std::unique_ptr<PeerServer> server_;
  std::unique_ptr<PeerClient> client_;
};

TEST_F(HandoffTest, WithoutALinkFramesGoOverGrpc) {
  const auto frames = RandomFrames(1, 200, 300000);
  FrameLog log(frames);
  ExpectedTransfer expected = Expect(&log);
  const auto report = Send(frames).get();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->frames_over_link, 0u);
  EXPECT_TRUE(expected->Await(absl::Now()).ok());
  EXPECT_EQ(log.next(), 200u);
}

TEST_F(HandoffTest, FramesGoOverTheLinkInBatchesAndLongOnesOverGrpc) {
  auto frames = RandomFrames(2, 50, 1000);
  frames.insert(frames.begin() + 20, RandomFrames(3, 1, 1)[0]);
  auto large = std::make_shared<Bytes>(5000, 7);
  frames[20] = {large->data(), large->size(), false, large};
  MemoryWire wire;
  MemoryLink mine(&wire, 5, 4000), theirs(&wire, 5, 3000);
  FrameLog log(frames);
  ExpectedTransfer expected = Expect(&log, &theirs);
  const auto report = Send(frames, &mine).get();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->frames_over_link, 50u);
  EXPECT_EQ(expected->taken_over_link(), 50u);
  EXPECT_TRUE(expected->Await(absl::Now()).ok());
}

TEST_F(HandoffTest, LinksOfTwoMeetingsAreNotUsed) {
  const auto frames = RandomFrames(4, 10, 1000);
  MemoryWire wire;
  MemoryLink mine(&wire, 5, 4000), theirs(&wire, 6, 4000);
  FrameLog log(frames);
  ExpectedTransfer expected = Expect(&log, &theirs);
  const auto report = Send(frames, &mine).get();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->frames_over_link, 0u);
}

TEST_F(HandoffTest, WhicheverWayTheLinkFailsTheRestGoesOverGrpc) {
  std::mt19937 random(5);
  for (const LinkFault fault : {LinkFault::kSendFails, LinkFault::kReceiveFails,
                                LinkFault::kStalls, LinkFault::kLate}) {
    for (int round = 0; round < 6; ++round) {
      const auto frames = RandomFrames(random(), 1 + random() % 60, 1000);
      MemoryWire wire;
      wire.fault = fault;
      wire.at = random() % 3;
      MemoryLink mine(&wire, 5, 4000), theirs(&wire, 5, 4000);
      FrameLog log(frames);
      ExpectedTransfer expected = Expect(&log, &theirs);
      const absl::Time start = absl::Now();
      const auto report = Send(frames, &mine).get();
      ASSERT_TRUE(report.ok())
          << report.status() << " fault " << static_cast<int>(fault);
      EXPECT_LT(absl::Now() - start, kPatience + absl::Seconds(5));
      EXPECT_EQ(log.next(), frames.size());
      EXPECT_TRUE(expected->Await(absl::Now()).ok());
      // With enough batches for the fault to show: each holds at least four
      // frames.
      if (frames.size() > 40) {
        EXPECT_FALSE(report->link_status.ok() && expected->link_status().ok());
      }
    }
  }
}

TEST_F(HandoffTest, AReceiverThatLeavesUponTheLastFrameHasAcknowledgedIt) {
  for (int round = 0; round < 50; ++round) {
    const auto frames = RandomFrames(14, 3, 1000);
    FrameLog log(frames);
    ExpectedTransfer expected = Expect(&log);
    Sent sent = Send(frames);
    EXPECT_TRUE(expected->Await(absl::Now() + absl::Seconds(30)).ok());
    expected.reset();
    ASSERT_TRUE(sent.get().ok());
    // And says so to whoever did not hear of it, but not of another transfer by
    // that name.
    EXPECT_TRUE(Send(frames).get().ok());
    EXPECT_FALSE(Send(RandomFrames(14, 4, 1000), nullptr,
                      CallLimits::In(absl::Milliseconds(50)))
                     .get()
                     .ok());
  }
}

TEST_F(HandoffTest, ASenderComesBeforeItsReceiver) {
  const auto frames = RandomFrames(6, 10, 1000);
  Sent sent = Send(frames);
  absl::SleepFor(absl::Milliseconds(200));
  FrameLog log(frames);
  ExpectedTransfer expected = Expect(&log);
  EXPECT_TRUE(sent.get().ok());
  EXPECT_EQ(log.next(), 10u);
}

// Refuses, or waits, at one frame.
class StopsAt final : public FrameLog {
 public:
  StopsAt(const std::vector<HandoffFrame>& frames, uint64_t at)
      : FrameLog(frames), at_(at) {}
  absl::Status Take(uint64_t index, const HandoffFrame& frame) override {
    if (index == at_) {
      reached.set_value();
      if (!let_go.get_future().get())
        return absl::ResourceExhaustedError("no pages are free");
    }
    return FrameLog::Take(index, frame);
  }
  std::promise<void> reached;
  std::promise<bool> let_go;

 private:
  const uint64_t at_;
};

TEST_F(HandoffTest, TheSinksRefusalReachesTheSender) {
  for (const bool over_link : {false, true}) {
    const auto frames = RandomFrames(7, 30, 1000);
    MemoryWire wire;
    MemoryLink mine(&wire, 5, 4000), theirs(&wire, 5, 4000);
    StopsAt log(frames, 11);
    log.let_go.set_value(false);
    ExpectedTransfer expected = Expect(&log, &theirs);
    const absl::Status status =
        Send(frames, over_link ? &mine : nullptr).get().status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(absl::IsResourceExhausted(expected->Await(absl::Now())));
    EXPECT_EQ(log.next(), 11u);
    // Whoever comes later is told the same, and not tried again.
    EXPECT_TRUE(absl::IsResourceExhausted(Send(frames).get().status()));
  }
}

TEST_F(HandoffTest, AnotherSenderGoesOnWhereTheFirstStopped) {
  for (const bool over_link : {false, true}) {
    const auto frames = RandomFrames(8, 40, 1000);
    MemoryWire wire;
    MemoryLink mine(&wire, 5, 4000), theirs(&wire, 5, 4000);
    StopsAt log(frames, 13);
    ExpectedTransfer expected = Expect(&log, &theirs);
    CancelToken cancel;
    Sent first = Send(frames, over_link ? &mine : nullptr, Patient(&cancel));
    log.reached.get_future().wait();
    cancel.Cancel();  // What a kill looks like from here.
    EXPECT_TRUE(absl::IsCancelled(first.get().status()));
    log.let_go.set_value(true);
    const auto report = Send(frames).get();
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(log.next(), 40u);
  }
}

TEST_F(HandoffTest, ASecondSenderTakesOverFromOneThatHangs) {
  const auto frames = RandomFrames(9, 40, 1000);
  MemoryWire wire;
  wire.fault = LinkFault::kStalls;
  wire.at = 1;
  MemoryLink mine(&wire, 5, 4000), theirs(&wire, 5, 4000);
  FrameLog log(frames);
  ExpectedTransfer expected =
      *service_->Expect({"t", 0, &log, &theirs, absl::Seconds(60)});
  Sent first = std::async(std::launch::async, [&] {
    return client_->HandOff({"t", frames, &mine, absl::Seconds(60)}, Patient());
  });
  while (log.next() == 0) absl::SleepFor(absl::Milliseconds(5));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(Send(frames).get().ok());
  EXPECT_EQ(log.next(), 40u);
  first.wait();  // Ends, whichever way.
}

TEST_F(HandoffTest, AReceiverThatWasStartedAnewSaysWhereToGoOn) {
  const auto frames = RandomFrames(10, 40, 1000);
  StopsAt log(frames, 17);
  ExpectedTransfer expected = Expect(&log);
  Sent sent = Send(frames);
  log.reached.get_future().wait();
  std::thread letting_go([&] {
    absl::SleepFor(absl::Milliseconds(100));
    log.let_go.set_value(true);
  });
  server_.reset();  // Waits for the sink.
  letting_go.join();
  expected.reset();
  const uint64_t held = log.next();
  EXPECT_LT(held, 40u);
  StopServer();
  StartServer();
  expected = Expect(&log, nullptr, held);
  const auto report = sent.get();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(log.next(), 40u);
}

TEST_F(HandoffTest, DeadlinesAreKeptAndSayHowFarItCame) {
  const auto frames = RandomFrames(11, 40, 1000);
  const absl::Time start = absl::Now();
  absl::Status status =
      Send(frames, nullptr, CallLimits::In(absl::Milliseconds(300)))
          .get()
          .status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("0 of 40"));
  StopsAt log(frames, 17);
  ExpectedTransfer expected = Expect(&log);
  status = Send(frames, nullptr, CallLimits::In(absl::Milliseconds(300)))
               .get()
               .status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("17 of 40"));
  status = expected->Await(absl::Now() + absl::Milliseconds(50));
  EXPECT_THAT(std::string(status.message()), HasSubstr("17 of 40"));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  log.let_go.set_value(true);
}

TEST_F(HandoffTest, PlansThatCannotBeAreRefused) {
  const auto frames = RandomFrames(12, 2, 100);
  const auto refused = [&](HandoffPlan plan) {
    return absl::IsInvalidArgument(client_->HandOff(plan, Patient()).status());
  };
  EXPECT_TRUE(refused({"", frames}));
  EXPECT_TRUE(refused({std::string(257, 't'), frames}));
  EXPECT_TRUE(refused({"t", {}}));
  EXPECT_TRUE(refused({"t", {{nullptr, 1, false, nullptr}}}));
  EXPECT_TRUE(refused({"t", {{frames[0].data, 0, false, nullptr}}}));
  EXPECT_TRUE(refused({"t", {{frames[0].data, 1, true, nullptr}}}));
  FrameLog log(frames);
  EXPECT_TRUE(
      absl::IsInvalidArgument(service_->Expect({"t", 0, nullptr}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(service_->Expect({"", 0, &log}).status()));
  ExpectedTransfer expected = Expect(&log);
  EXPECT_TRUE(absl::IsAlreadyExists(service_->Expect({"t", 0, &log}).status()));
  expected.reset();
  EXPECT_TRUE(service_->Expect({"t", 0, &log}).ok());
}

// What a sender could say that is not so.
class LyingSenderTest : public HandoffTest {
 protected:
  grpc::StatusCode Say(const std::vector<v1::HandOffRequest>& requests) {
    auto stub = v1::Peer::NewStub(grpc::CreateChannel(
        server_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::seconds(10));
    auto stream = stub->HandOff(&context);
    for (const auto& request : requests) stream->Write(request);
    stream->WritesDone();
    v1::HandOffResponse response;
    while (stream->Read(&response)) {
    }
    return stream->Finish().error_code();
  }
  static v1::HandOffRequest Begin(uint64_t frames, uint64_t generation = 0) {
    v1::HandOffRequest request;
    request.mutable_begin()->set_transfer("t");
    request.mutable_begin()->set_frames(frames);
    request.mutable_begin()->set_generation(generation);
    return request;
  }
  static v1::HandOffRequest Frame(uint64_t index, const std::string& bytes) {
    v1::HandOffRequest request;
    request.set_first(index);
    request.set_frame(bytes);
    return request;
  }
  static v1::HandOffRequest Batch(uint64_t first,
                                  std::vector<uint64_t> frame_bytes) {
    v1::HandOffRequest request;
    request.set_first(first);
    for (uint64_t bytes : frame_bytes) request.add_batch_bytes(bytes);
    return request;
  }
};

TEST_F(LyingSenderTest, IsRefusedAndTheTransferGoesOn) {
  constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  const auto frames = RandomFrames(13, 3, 100);
  MemoryWire wire;
  MemoryLink theirs(&wire, 5, 4000);
  FrameLog log(frames);
  ExpectedTransfer expected = Expect(&log, &theirs);
  EXPECT_EQ(Say({Frame(0, "early")}), kInvalid);
  EXPECT_EQ(Say({Begin(0)}), kInvalid);
  EXPECT_EQ(Say({Begin(kTransferFramesMax + 1)}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Frame(1, "a gap")}), kInvalid);
  EXPECT_EQ(Say({Begin(4, 5)}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Frame(0, "")}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Begin(3, 5)}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Batch(0, {0})}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Batch(0, {4001})}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Batch(0, {~uint64_t{0}, 2})}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Batch(0, {1, 1, 1, 1})}), kInvalid);
  EXPECT_EQ(Say({Begin(3, 5), Batch(1, {1})}), kInvalid);
  EXPECT_TRUE(Send(frames).get().ok());
  EXPECT_EQ(Say({Begin(3), Frame(3, "one more")}), kInvalid);
  EXPECT_EQ(log.next(), 3u);
}

}  // namespace
}  // namespace latentkv
