// Either process of a handoff is killed while a batch is on its way over a link
// that would never end it: the other is free at once, and the transfer is
// completed over gRPC.
#include <future>
#include <iostream>

#include "gtest/gtest.h"
#include "tests/storage/scratch_folder.h"
#include "tests/transport/frame_log.h"
#include "tests/transport/memory_link.h"
#include "tests/transport/rank_process.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

// Of a batch: whoever is free before was freed by the kill.
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kFreed = absl::Seconds(2);

std::string Address(const std::string& folder) {
  return "unix:" + folder + "/peer";
}
std::vector<HandoffFrame> Frames() { return RandomFrames(7, 40, 1000); }

// One end of two that are not connected: nothing ever arrives.
class DeadEnd final : public MemoryLink {
 public:
  explicit DeadEnd(MemoryWire* wire) : MemoryLink(wire, 5, 4000) {
    wire->fault = LinkFault::kStalls;
  }
  absl::Status Send(absl::Span<const HandoffFrame> frames,
                    absl::Time deadline) override {
    entered.set_value();
    absl::Status status = MemoryLink::Send(frames, deadline);
    freed.set_value(absl::Now());
    return status;
  }
  absl::StatusOr<std::vector<HandoffFrame>> Receive(
      absl::Span<const uint64_t> frame_bytes, absl::Time deadline) override {
    entered.set_value();
    auto frames = MemoryLink::Receive(frame_bytes, deadline);
    freed.set_value(absl::Now());
    return frames;
  }
  std::promise<void> entered;
  std::promise<absl::Time> freed;
};

int SendByLink(const std::string& folder) {
  MemoryWire wire;
  DeadEnd link(&wire);
  const auto client = *PeerClient::Open(Address(folder));
  return client->HandOff({"t", Frames(), &link, kPatience},
                         CallLimits::In(kPatience))
                 .ok()
             ? 0
             : 1;
}

int Receive(const std::string& folder, bool by_link) {
  MemoryWire wire;
  DeadEnd link(&wire);
  PeerService service;
  const auto server = PeerServer::Start(Address(folder), &service);
  if (!server.ok()) return 2;
  FrameLog log(Frames());
  const auto expected =
      *service.Expect({"t", 0, &log, by_link ? &link : nullptr, kPatience});
  return expected->Await(absl::Now() + kPatience).ok() && log.next() == 40 ? 0
                                                                           : 1;
}

class HandoffKillTest : public ::testing::Test {
 protected:
  void CheckFreed(DeadEnd* link, RankProcess* killed) {
    EXPECT_EQ(killed->Ended(absl::Now() + absl::Seconds(10)), "signal 9");
    const absl::Duration freed =
        link->freed.get_future().get() - killed->ended_at();
    std::cout << "free " << absl::ToDoubleMilliseconds(freed)
              << " ms after the kill\n";
    EXPECT_LT(freed, kFreed);
  }
  ScratchFolder folder_;
  MemoryWire wire_;
  DeadEnd link_{&wire_};
};

TEST_F(HandoffKillTest, ASenderThatIsKilledFreesTheReceiverAndAnotherGoesOn) {
  PeerService service;
  const auto server = *PeerServer::Start(Address(folder_.path()), &service);
  FrameLog log(Frames());
  const auto expected = *service.Expect({"t", 0, &log, &link_, kPatience});
  RankProcess sender("send", 0, 2, folder_.path());
  link_.entered.get_future().wait();
  sender.Kill();
  CheckFreed(&link_, &sender);
  const auto client = *PeerClient::Open(Address(folder_.path()));
  const auto report =
      client->HandOff({"t", Frames()}, CallLimits::In(absl::Seconds(20)));
  EXPECT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(log.next(), 40u);
  EXPECT_FALSE(expected->link_status().ok());
}

TEST_F(HandoffKillTest,
       AReceiverThatIsKilledFreesTheSenderWhichGoesOnWithAnother) {
  RankProcess receiver("receive-by-link", 1, 2, folder_.path());
  const auto client = *PeerClient::Open(Address(folder_.path()));
  auto sent = std::async(std::launch::async, [&] {
    return client->HandOff({"t", Frames(), &link_, kPatience},
                           CallLimits::In(absl::Seconds(30)));
  });
  link_.entered.get_future().wait();
  receiver.Kill();
  CheckFreed(&link_, &receiver);
  RankProcess next("receive", 1, 2, folder_.path());
  const auto report = sent.get();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->frames_over_link, 0u);
  EXPECT_FALSE(report->link_status.ok());
  EXPECT_EQ(next.Ended(absl::Now() + absl::Seconds(20)), "exit 0");
}

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  if (argc == 6 && std::string(argv[1]) == "rank") {
    const std::string role = argv[2];
    return role == "send"
               ? latentkv::SendByLink(argv[5])
               : latentkv::Receive(argv[5], role == "receive-by-link");
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
