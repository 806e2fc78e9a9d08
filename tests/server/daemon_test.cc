// The executable: started, killed, started again.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "tests/server/daemon_process.h"
#include "tests/storage/scratch_folder.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class DaemonTest : public ::testing::Test {
 protected:
  std::vector<std::string> Flags() const {
    return {"--data", folder_.path() + "/data", "--listen", "127.0.0.1:0", "--capacity-bytes", "1GiB"};
  }

  ScratchFolder folder_;
};

TEST_F(DaemonTest, AcknowledgedFramesSurviveKill9) {
  std::vector<std::shared_ptr<const Bytes>> frames;
  for (uint32_t i = 0; i < 20; ++i) frames.push_back(TestFrame(i, 3, 20000));
  RemoteSession session;
  session.name = "talk";
  session.record = "said";
  {
    DaemonProcess daemon(Flags());
    const std::string address = daemon.Address();
    ASSERT_FALSE(address.empty());
    auto channel = *MakeGrpcChannel(address);
    auto statuses = StoreFrames(channel.get(), frames);
    ASSERT_THAT(statuses, SizeIs(frames.size()));
    for (const absl::Status& status : statuses) ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(channel->PutSession(session, CallLimits::In(absl::Seconds(10))).ok());
    const int status = daemon.End(SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  DaemonProcess daemon(Flags());
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel = *MakeGrpcChannel(address);
  LookupQuery query;
  query.keys = TestKeys(frames.size() + 1);
  auto answer = channel->Lookup(query, CallLimits::In(absl::Seconds(10)));
  ASSERT_TRUE(answer.ok()) << answer.status();
  ASSERT_THAT(answer->records, SizeIs(frames.size()));
  FetchedFrames fetched = FetchFrames(channel.get(), answer->records);
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  for (size_t i = 0; i < frames.size(); ++i) EXPECT_EQ(fetched.frames[i], *frames[i]) << i;
  auto kept = channel->GetSession("talk", CallLimits::In(absl::Seconds(10)));
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->record, "said");
}

TEST_F(DaemonTest, TermStopsItCleanly) {
  DaemonProcess daemon(Flags());
  ASSERT_FALSE(daemon.Address().empty());
  const int status = daemon.End(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(DaemonTest, AddressThatOthersReachIsRefusedWithTheReason) {
  DaemonProcess daemon({"--data", folder_.path() + "/data", "--listen", "0.0.0.0:7430"});
  EXPECT_THAT(daemon.ReadAll(), HasSubstr("can be reached from other machines"));
  EXPECT_EQ(WEXITSTATUS(daemon.End(0)), 2);
}

TEST_F(DaemonTest, SecondDaemonOnTheSameAddressFails) {
  DaemonProcess first(Flags());
  const std::string address = first.Address();
  ASSERT_FALSE(address.empty());
  DaemonProcess second({"--data", folder_.path() + "/other", "--listen", address});
  EXPECT_THAT(second.ReadAll(), HasSubstr("cannot listen"));
  EXPECT_EQ(WEXITSTATUS(second.End(0)), 1);
}

TEST_F(DaemonTest, HelpNamesTheFlags) {
  DaemonProcess daemon({"--help"});
  EXPECT_THAT(daemon.ReadAll(), HasSubstr("--capacity-bytes"));
  EXPECT_EQ(WEXITSTATUS(daemon.End(0)), 0);
}

}  // namespace
}  // namespace latentkv
