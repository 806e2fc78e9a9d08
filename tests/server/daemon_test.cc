// The executable: started, killed, started again.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    arguments.insert(arguments.begin(), LATENTKVD_PATH);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      execv(LATENTKVD_PATH, pointers.data());
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  ~Process() {
    if (pid_ > 0) End(SIGKILL);
    if (output_ != nullptr) fclose(output_);
  }
  // Reads up to the line that begins with `start`; what follows it. Empty when the output ends.
  std::string Await(const std::string& start) {
    char line[4096];
    while (output_ != nullptr && fgets(line, sizeof(line), output_) != nullptr) {
      std::string text(line);
      if (text.rfind(start, 0) == 0) return text.substr(start.size(), text.find('\n') - start.size());
    }
    return "";
  }
  std::string ReadAll() {
    std::string all;
    char line[4096];
    while (output_ != nullptr && fgets(line, sizeof(line), output_) != nullptr) all += line;
    return all;
  }
  // Sends `signal` (0: none) and waits; the status of waitpid.
  int End(int signal) {
    int status = -1;
    if (signal != 0) kill(pid_, signal);
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
  FILE* output_ = nullptr;
};

class DaemonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "latentkv-daemon-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(path_); }
  std::vector<std::string> Flags() const {
    return {"--data", path_ + "/data", "--listen", "127.0.0.1:0", "--capacity-bytes", "1GiB"};
  }
  static constexpr char kReady[] = "latentkvd listening on ";

  std::string path_;
};

TEST_F(DaemonTest, AcknowledgedFramesSurviveKill9) {
  std::vector<std::shared_ptr<const Bytes>> frames;
  for (uint32_t i = 0; i < 20; ++i) frames.push_back(TestFrame(i, 3, 20000));
  RemoteSession session;
  session.name = "talk";
  session.record = "said";
  {
    Process daemon(Flags());
    const std::string address = daemon.Await(kReady);
    ASSERT_FALSE(address.empty());
    auto channel = *MakeGrpcChannel(address);
    auto statuses = StoreFrames(channel.get(), frames);
    ASSERT_THAT(statuses, SizeIs(frames.size()));
    for (const absl::Status& status : statuses) ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(channel->PutSession(session, CallLimits::In(absl::Seconds(10))).ok());
    const int status = daemon.End(SIGKILL);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  Process daemon(Flags());
  const std::string address = daemon.Await(kReady);
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
  Process daemon(Flags());
  ASSERT_FALSE(daemon.Await(kReady).empty());
  const int status = daemon.End(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(DaemonTest, AddressThatOthersReachIsRefusedWithTheReason) {
  Process daemon({"--data", path_ + "/data", "--listen", "0.0.0.0:7430"});
  EXPECT_THAT(daemon.ReadAll(), HasSubstr("can be reached from other machines"));
  EXPECT_EQ(WEXITSTATUS(daemon.End(0)), 2);
}

TEST_F(DaemonTest, SecondDaemonOnTheSameAddressFails) {
  Process first(Flags());
  const std::string address = first.Await(kReady);
  ASSERT_FALSE(address.empty());
  Process second({"--data", path_ + "/other", "--listen", address});
  EXPECT_THAT(second.ReadAll(), HasSubstr("cannot listen"));
  EXPECT_EQ(WEXITSTATUS(second.End(0)), 1);
}

TEST_F(DaemonTest, HelpNamesTheFlags) {
  Process daemon({"--help"});
  EXPECT_THAT(daemon.ReadAll(), HasSubstr("--capacity-bytes"));
  EXPECT_EQ(WEXITSTATUS(daemon.End(0)), 0);
}

}  // namespace
}  // namespace latentkv
