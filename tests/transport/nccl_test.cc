// What can be known of the channel between devices without one: it is not
// loaded before it is used, says what is missing, and a handoff goes on without
// it.
#include <dlfcn.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/scratch_folder.h"
#include "tests/transport/frame_log.h"
#include "transport/nccl/communicator.h"
#include "transport/nccl/nccl_library.h"
#include "transport/nccl/nccl_link.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;

bool HasDevice() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

TEST(NcclTest, IsNotLoadedBeforeItIsUsed) {
  EXPECT_EQ(dlopen("libnccl.so.2", RTLD_LAZY | RTLD_NOLOAD), nullptr);
}

TEST(NcclTest, ALibraryThatIsNotThereIsNamed) {
  const absl::Status status =
      NcclLibrary::Open("libnccl-of-nobody.so.2").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("libnccl-of-nobody.so.2"));
}

TEST(NcclTest, ALibraryThatIsNotNcclIsRefused) {
  const absl::Status status = NcclLibrary::Open("libm.so.6").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("nccl"));
}

TEST(NcclTest, WithoutADeviceNobodyIsMet) {
  if (HasDevice()) GTEST_SKIP() << "a device is here: NOT RUN";
  for (uint32_t rank : {0, 1}) {
    int asked = 0;
    const auto join = [&](ByteSpan) -> absl::StatusOr<Meeting> {
      ++asked;
      return absl::UnavailableError("nobody is here");
    };
    const absl::Status status =
        Communicator::Join({"g", rank, 2}, join, 0,
                           absl::Now() + absl::Seconds(10))
            .status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(asked, 0);
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(MakeNcclLink(nullptr, 0).status()));
}

// Both ends try to connect, cannot, and the frames arrive all the same.
TEST(NcclTest, AHandoffWhoseCommunicatorCannotBeMadeGoesOverGrpc) {
  if (HasDevice()) GTEST_SKIP() << "a device is here: NOT RUN";
  ScratchFolder folder;
  PeerService service;
  const auto server =
      *PeerServer::Start("unix:" + folder.path() + "/peer", &service);
  const auto client = *PeerClient::Open(server->address());
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  const auto sender = Communicator::Join(
      {"pd", 0, 2},
      [&](ByteSpan id) {
        return client->Join({"pd", 0, 2}, id, CallLimits{deadline});
      },
      0, deadline);
  const auto receiver = Communicator::Join(
      {"pd", 1, 2},
      [&](ByteSpan id) {
        return service.meetings()->Join({"pd", 1, 2}, id, deadline,
                                        [] { return false; });
      },
      0, deadline);
  ASSERT_FALSE(sender.ok() || receiver.ok());

  const auto frames = RandomFrames(1, 60, 1 << 20);
  FrameLog log(frames);
  const ExpectedTransfer expected = *service.Expect({"t", 0, &log});
  const auto report = client->HandOff({"t", frames}, CallLimits{deadline});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->frames_over_link, 0u);
  EXPECT_TRUE(expected->Await(deadline).ok());
  EXPECT_EQ(log.next(), 60u);
}

}  // namespace
}  // namespace latentkv
