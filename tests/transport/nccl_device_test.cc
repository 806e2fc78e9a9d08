// Ranks as processes on one device: what they compute, and what becomes of
// those whose peer dies, stops or never comes.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <iostream>

#include "tests/storage/scratch_folder.h"
#include "tests/transport/nccl_roles.h"
#include "tests/transport/rank_process.h"
#include "transport/nccl/communicator.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

// Four processes that start CUDA at once.
constexpr absl::Duration kLong = absl::Seconds(90);

class NcclDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no device: NOT RUN";
  }
  std::string Path(const std::string& name) const {
    return folder_.path() + "/" + name;
  }
  // Where ranks meet, in this process.
  void Serve() {
    server_ = *PeerServer::Start(MeetingAddress(folder_.path()), &service_);
  }
  RankProcess& Start(const std::string& role, uint32_t rank, uint32_t ranks) {
    return processes_.emplace_back(role, rank, ranks, folder_.path());
  }
  static absl::Time Soon() { return absl::Now() + kLong; }
  // How long after `since` a rank said that it was free.
  absl::Duration Freed(uint32_t rank, absl::Time since) {
    const absl::Duration freed =
        ReadMoment(FreedPath(folder_.path(), rank)) - since;
    std::cout << "rank " << rank << " was free "
              << absl::ToInt64Milliseconds(freed)
              << " ms after its peer ended\n";
    return freed;
  }

  ScratchFolder folder_;
  PeerService service_;
  std::unique_ptr<PeerServer> server_;
  std::deque<RankProcess> processes_;
};

TEST_F(NcclDeviceTest, TwoAndFourRanksGetWhatTheCpuGets) {
  Serve();
  for (uint32_t ranks : {2, 4}) {
    processes_.clear();
    for (uint32_t rank = 0; rank < ranks; ++rank)
      Start("collectives", rank, ranks);
    for (RankProcess& process : processes_)
      EXPECT_EQ(process.Ended(Soon()), "exit 0");
  }
}

TEST_F(NcclDeviceTest, ARankKilledInAReductionFreesTheOthers) {
  Serve();
  for (uint32_t ranks : {2, 4}) {
    processes_.clear();
    for (uint32_t rank = 0; rank < ranks; ++rank)
      Start("reduce-killed", rank, ranks);
    EXPECT_EQ(processes_[1].Ended(Soon()), "signal 9");
    const absl::Time killed = processes_[1].ended_at();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      if (rank == 1) continue;
      EXPECT_EQ(processes_[rank].Ended(Soon()), "exit 0");
      EXPECT_LE(Freed(rank, killed), kOperationTime + kAbortTimeMax);
    }
  }
}

TEST_F(NcclDeviceTest, ARankThatIsStoppedFreesTheOthersAtTheDeadline) {
  Serve();
  Start("reduce-stopped", 0, 2);
  EXPECT_EQ(Start("reduce-stopped", 1, 2).Ended(Soon()), "stopped");
  const absl::Time stopped = processes_[1].ended_at();
  EXPECT_EQ(processes_[0].Ended(Soon()), "exit 0");
  EXPECT_LE(Freed(0, stopped), kOperationTime + kAbortTimeMax);
}

TEST_F(NcclDeviceTest, ARankKilledBeforeItConnectsFreesTheOthersAtTheDeadline) {
  Serve();
  for (uint32_t dead : {0u, 1u}) {
    processes_.clear();
    const std::string role = absl::StrCat("connect-killed-", dead);
    for (uint32_t rank : {0, 1}) Start(role, rank, 2);
    EXPECT_EQ(processes_[dead].Ended(Soon()), "signal 9");
    EXPECT_EQ(processes_[1 - dead].Ended(Soon()), "exit 0");
    EXPECT_LE(Freed(1 - dead, processes_[dead].ended_at()),
              kConnectTime + kAbortTimeMax);
  }
}

TEST_F(NcclDeviceTest, AHandoffGoesOverTheLink) {
  Start("receive-all", 1, 2);
  Start("send-all", 0, 2);
  for (RankProcess& process : processes_)
    EXPECT_EQ(process.Ended(Soon()), "exit 0");
}

TEST_F(NcclDeviceTest,
       ASenderKilledInABatchFreesTheReceiverAndAnotherGoesOnOverGrpc) {
  RankProcess& receiver = Start("receive-freed", 1, 2);
  RankProcess& sender = Start("send-killed", 0, 2);
  EXPECT_EQ(sender.Ended(Soon()), "signal 9");
  RankProcess& next = Start("send-over-grpc", 0, 2);
  EXPECT_EQ(next.Ended(Soon()), "exit 0");
  EXPECT_EQ(receiver.Ended(Soon()), "exit 0");
  EXPECT_LE(Freed(1, sender.ended_at()), kBatchTime + kAbortTimeMax);
}

TEST_F(NcclDeviceTest,
       AReceiverKilledInABatchFreesTheSenderWhichGoesOnOverGrpc) {
  RankProcess& sender = Start("send-freed", 0, 2);
  RankProcess& receiver = Start("receive-killed", 1, 2);
  EXPECT_EQ(receiver.Ended(Soon()), "signal 9");
  RankProcess& next = Start("receive-over-grpc", 1, 2);
  EXPECT_EQ(sender.Ended(Soon()), "exit 0");
  EXPECT_EQ(next.Ended(Soon()), "exit 0");
  EXPECT_LE(Freed(0, receiver.ended_at()), kBatchTime + kAbortTimeMax);
}

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  if (argc == 6 && std::string(argv[1]) == "rank") {
    return latentkv::PlayRole({argv[2], static_cast<uint32_t>(atoi(argv[3])),
                               static_cast<uint32_t>(atoi(argv[4])), argv[5]});
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
