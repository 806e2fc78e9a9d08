// The executable: started, killed, started again.
#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/sync_stream.h>
#include <sys/socket.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/blocks.h"
#include "tests/server/daemon_process.h"
#include "tests/storage/scratch_folder.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// One message there and one back, as bytes.
std::string Exchange(const std::shared_ptr<grpc::Channel>& channel,
                     const std::string& method, const std::string& request) {
  using Stream = grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer,
                                                           grpc::ByteBuffer>;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::seconds(10));
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>>
      stream(Stream::Create(
          channel.get(),
          grpc::internal::RpcMethod(method.c_str(),
                                    grpc::internal::RpcMethod::BIDI_STREAMING),
          &context));
  const grpc::Slice slice(request);
  stream->Write(grpc::ByteBuffer(&slice, 1));
  stream->WritesDone();
  grpc::ByteBuffer answer;
  grpc::Slice bytes;
  if (!stream->Read(&answer) || !answer.DumpToSingleSlice(&bytes).ok())
    return "no answer";
  while (stream->Read(&answer)) {
  }
  EXPECT_TRUE(stream->Finish().ok());
  return std::string(reinterpret_cast<const char*>(bytes.begin()),
                     bytes.size());
}

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = Loopback(0);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  close(fd);
  return ntohs(address.sin_port);
}

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in address = Loopback(port);
  EXPECT_EQ(
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
      0);
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char part[4096];
  for (ssize_t count; (count = read(fd, part, sizeof(part))) > 0;)
    answer.append(part, count);
  close(fd);
  return answer;
}

class DaemonTest : public ::testing::Test {
 protected:
  std::vector<std::string> Flags() const {
    return {"--data",      folder_.path() + "/data", "--listen",
            "127.0.0.1:0", "--capacity-bytes",       "1GiB"};
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
    for (const absl::Status& status : statuses)
      ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(
        channel->PutSession(session, CallLimits::In(absl::Seconds(10))).ok());
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
  for (size_t i = 0; i < frames.size(); ++i)
    EXPECT_EQ(fetched.frames[i], *frames[i]) << i;
  auto kept = channel->GetSession("talk", CallLimits::In(absl::Seconds(10)));
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->record, "said");
}

TEST_F(DaemonTest, TermStopsItCleanlyWithConnectionsOpen) {
  DaemonProcess daemon(Flags());
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel = *MakeGrpcChannel(address);
  auto stream = channel->OpenStore(CallLimits::In(absl::Seconds(60)));
  StoreAck ack;
  ASSERT_TRUE(stream->Send({1, Digest{}, false, TestFrame(0, 1, 10)}));
  ASSERT_TRUE(stream->ReadAck(&ack));
  const int status = daemon.End(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_FALSE(stream->ReadAck(&ack));
}

TEST_F(DaemonTest, AnswersHealthAndReflection) {
  DaemonProcess daemon(Flags());
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel =
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  // HealthCheckRequest{} is empty, and HealthCheckResponse{SERVING} is its
  // field 1 as 1.
  EXPECT_EQ(Exchange(channel, "/grpc.health.v1.Health/Check", ""),
            std::string("\x08\x01", 2));
  // ServerReflectionRequest{list_services: ""}.
  EXPECT_THAT(
      Exchange(channel,
               "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
               std::string("\x3a\0", 2)),
      AllOf(HasSubstr("latentkv.v1.Cache"), HasSubstr("latentkv.v1.Admin")));
}

TEST_F(DaemonTest, ServesPrometheusMetrics) {
  const int port = FreePort();
  std::vector<std::string> flags = Flags();
  flags.push_back("--metrics-address=127.0.0.1:" + std::to_string(port));
  DaemonProcess daemon(flags);
  const std::string address = daemon.Address();
  ASSERT_FALSE(address.empty());
  auto channel = *MakeGrpcChannel(address);
  ASSERT_THAT(StoreFrames(channel.get(), {TestFrame(0, 1, 1000)}), SizeIs(1));
  const std::string page = HttpGet(port, "/metrics");
  EXPECT_THAT(page, HasSubstr("\nlatentkv_records 1\n"));
  EXPECT_THAT(page, HasSubstr("\nlatentkv_stores_total 1\n"));
  EXPECT_THAT(page, HasSubstr("\nlatentkv_sessions 0\n"));
}

TEST_F(DaemonTest, ASocketLeftBehindByAKillIsTakenOver) {
  const std::vector<std::string> flags = {"--data", folder_.path() + "/data",
                                          "--listen",
                                          "unix:" + folder_.path() + "/socket"};
  for (int start = 0; start < 2; ++start) {
    DaemonProcess daemon(flags);
    const std::string address = daemon.Address();
    ASSERT_EQ(address, "unix:" + folder_.path() + "/socket");
    auto channel = *MakeGrpcChannel(address);
    EXPECT_TRUE(channel->Stats(CallLimits::In(absl::Seconds(10))).ok());
    daemon.End(SIGKILL);
  }
}

TEST_F(DaemonTest, AddressThatOthersReachIsRefusedWithTheReason) {
  DaemonProcess daemon(
      {"--data", folder_.path() + "/data", "--listen", "0.0.0.0:7430"});
  EXPECT_THAT(daemon.ReadAll(),
              HasSubstr("can be reached from other machines"));
  EXPECT_EQ(WEXITSTATUS(daemon.End(0)), 2);
}

TEST_F(DaemonTest, SecondDaemonOnTheSameAddressFails) {
  DaemonProcess first(Flags());
  const std::string address = first.Address();
  ASSERT_FALSE(address.empty());
  DaemonProcess second(
      {"--data", folder_.path() + "/other", "--listen", address});
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
