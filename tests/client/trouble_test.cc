// What the engine sees of trouble: misses, in time.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <sstream>
#include <thread>

#include "core/limits.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/wrapped_channel.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;

class TroubleTest : public ClientTest {
 protected:
  std::shared_ptr<WrappedChannel> Wrap() const {
    return std::make_shared<WrappedChannel>(daemon_.Connect());
  }
  // Asks until the daemon answers again.
  uint64_t MatchWhenBack(Client* client, uint64_t seed, uint64_t count) const {
    for (absl::Time end = absl::Now() + kLong; absl::Now() < end;
         absl::SleepFor(absl::Milliseconds(20))) {
      if (uint64_t matched = Match(client, seed, count); matched > 0)
        return matched;
    }
    return 0;
  }
};

// Collects what a client logs.
class LogText {
 public:
  std::shared_ptr<spdlog::logger> logger() {
    return std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(stream_));
  }
  size_t Count(const std::string& word) const {
    size_t count = 0;
    const std::string text = stream_.str();
    for (size_t at = text.find(word); at != std::string::npos;
         at = text.find(word, at + 1))
      ++count;
    return count;
  }

 private:
  std::ostringstream stream_;
};

TEST_F(TroubleTest, FrameOfAnotherGeometryUnderTheSameKeyIsRefusedAndLeft) {
  ASSERT_TRUE(StoreSequence(5, 128));
  Geometry other = geometry_;
  for (LayerGeometry& layer : other.layers) layer.inverse_frequencies[1] *= 2;
  TestPages pages(other, Layout::kTokensFirst, 64, 2);
  const std::vector<Bytes> poison = pages.memory();
  std::unique_ptr<Client> client =
      Open(TestConfig(daemon_.Connect(), other), &pages);
  EXPECT_EQ(Match(client.get(), 5, 128), 128u);
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 128).token_count, 0u);
  EXPECT_TRUE(pages.memory() == poison);
  EXPECT_EQ(client->Stats().load_failures, 2u);
  EXPECT_EQ(Match(client.get(), 5, 128), 128u);
}

TEST_F(TroubleTest, FrameOfAnotherBasisIsNotAskedForAndNotTaken) {
  const auto ours = PlainBasis(geometry_, 0),
             theirs = PlainBasis(geometry_, 0.5);
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 2);
  pages.Compute(5, pages.PageIds(128, 5), 0, 128);
  {
    std::unique_ptr<Client> client =
        Open(TestConfig(daemon_.Connect(), geometry_, theirs), &pages);
    ASSERT_TRUE(
        client->Store({TestTokens(5, 128)}, 0, 128, pages.PageIds(128, 5))
            .ok());
    ASSERT_TRUE(client->Flush(kLong).ok());
  }
  pages.Poison();
  const std::vector<Bytes> poison = pages.memory();
  auto channel = Wrap();
  std::unique_ptr<Client> client =
      Open(TestConfig(channel, geometry_, ours), &pages);
  EXPECT_EQ(Match(client.get(), 5, 128), 0u);
  // As if the daemon had not kept them apart.
  channel->on_lookup = [&](LookupQuery* query) {
    query->accept_bases = {theirs->digest()};
  };
  EXPECT_EQ(Match(client.get(), 5, 128), 128u);
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 128).token_count, 0u);
  EXPECT_TRUE(pages.memory() == poison);
}

TEST_F(TroubleTest, BasisOfAnotherModelIsRefusedAtOpening) {
  ClientOptions options = OptionsWith(*PlainBasis(SmallGeometry(2)));
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Open(options).status()));
  options.geometry = SmallGeometry(2);
  EXPECT_TRUE(Client::Open(options).ok());
  options.profile = "perfect";
  EXPECT_THAT(std::string(Client::Open(options).status().message()),
              HasSubstr("balanced"));
  options.basis_path += ".gone";
  EXPECT_TRUE(absl::IsNotFound(Client::Open(options).status()));
  options.basis_path.clear();
  EXPECT_TRUE(Client::Open(options).ok());
}

TEST_F(TroubleTest, DaemonThatIsNotThereIsAMissAndSaidOnce) {
  daemon_.Stop();
  LogText log;
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  ClientConfig config = TestConfig(daemon_.Connect(), geometry_);
  config.logger = log.logger();
  std::unique_ptr<Client> client = Open(std::move(config), &pages);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Match(client.get(), 5, 256), 0u);
  EXPECT_TRUE(client->Stats().breaker_open);
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 256).token_count, 0u);
  auto stored =
      client->Store({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5));
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ((*stored)->Wait(-1, kLong)->token_count, 0u);
  EXPECT_TRUE(client->Flush(kLong).ok());
  EXPECT_EQ(client->Stats().dropped_blocks + client->Stats().store_failures,
            4u);
  EXPECT_TRUE(absl::IsUnavailable(client->PutSession("talk", {}, Soon())));
  EXPECT_EQ(log.Count("the daemon is away"), 1u);
}

TEST_F(TroubleTest, DaemonThatComesBackIsUsedAgain) {
  ASSERT_TRUE(StoreSequence(5, 256));
  LogText log;
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  ClientConfig config = TestConfig(daemon_.Connect(), geometry_);
  config.logger = log.logger();
  std::unique_ptr<Client> client = Open(std::move(config), &pages);
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(MatchWhenBack(client.get(), 5, 256), 256u);
    EXPECT_FALSE(client->Stats().breaker_open);
    pages.Poison();
    EXPECT_EQ(Load(client.get(), pages, 5, 0, 256).token_count, 256u);
    EXPECT_TRUE(pages.memory() ==
                Expected(Layout::kTokensFirst, 64, 4, 5, 0, 256).memory());
    const uint64_t seed = 100 + round;
    auto stored =
        client->Store({TestTokens(seed, 256)}, 0, 256, pages.PageIds(256, 5));
    EXPECT_EQ((*stored)->Wait(-1, kLong)->token_count, 256u);
    daemon_.Stop();
    EXPECT_EQ(Match(client.get(), 5, 256), 0u);
    daemon_.Start();
  }
  EXPECT_GE(log.Count("the daemon is back"), 2u);
}

// Accepts connections, and says nothing.
class SilentPort {
 public:
  SilentPort() : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(socket_, 16), 0);
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  ~SilentPort() { close(socket_); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  int socket_;
  int port_ = 0;
};

TEST_F(TroubleTest, DaemonThatSaysNothingCostsOneDeadlineAndThenNothing) {
  SilentPort port;
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client =
      Open(TestConfig(*MakeGrpcChannel(port.address()), geometry_), &pages);
  EXPECT_EQ(Match(client.get(), 5, 256, absl::Now() + absl::Milliseconds(200)),
            0u);
  EXPECT_TRUE(client->Stats().breaker_open);
  // Would each take the deadline of an hour.
  EXPECT_EQ(Match(client.get(), 5, 256, absl::Now() + absl::Hours(1)), 0u);
  auto job = client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5),
                          absl::Now() + absl::Hours(1));
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 0u);
}

TEST_F(TroubleTest, LoadEndsAtItsDeadlineWithWhatIsGood) {
  ASSERT_TRUE(StoreSequence(5, 256));
  auto channel = Wrap();
  channel->on_section = [](FetchedSection* section, const CallLimits& limits) {
    // The last section of the blocks from the third on never comes.
    if (section->section == 2 && section->record >= 2)
      absl::SleepFor(limits.deadline - absl::Now());
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  auto job = client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5),
                          absl::Now() + absl::Milliseconds(500));
  ASSERT_TRUE(job.ok());
  EXPECT_EQ((*job)->Wait(0, kLong)->token_count, 256u);
  EXPECT_EQ((*job)->Wait(2, kLong)->token_count, 128u);
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
}

TEST_F(TroubleTest, WaitReturnsLayerByLayer) {
  ASSERT_TRUE(StoreSequence(5, 256));
  auto channel = Wrap();
  Gate gates[3];
  channel->on_section = [&](FetchedSection* section, const CallLimits& limits) {
    gates[section->section].Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kEngineCpu, 32, 8);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  auto job =
      client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5), Soon());
  ASSERT_TRUE(job.ok());
  const TestPages expected = Expected(Layout::kEngineCpu, 32, 8, 5, 0, 256);
  for (int layer = 0; layer < 3; ++layer) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(
        (*job)->Wait(layer, absl::Milliseconds(20)).status()))
        << layer;
    gates[layer].Open();
    EXPECT_EQ((*job)->Wait(layer, kLong)->token_count, 256u);
    EXPECT_TRUE(pages.memory()[layer] == expected.memory()[layer]) << layer;
    if (layer < 2) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(
          (*job)->Wait(-1, absl::ZeroDuration()).status()));
    }
  }
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 256u);
  EXPECT_TRUE(absl::IsInvalidArgument((*job)->Wait(3, kLong).status()));
}

TEST_F(TroubleTest, FreeingALoadThatRunsStopsItsWrites) {
  ASSERT_TRUE(StoreSequence(5, 256));
  auto channel = Wrap();
  Gate gate;
  channel->on_section = [&](FetchedSection* section, const CallLimits& limits) {
    if (section->section == 1 && section->record == 1) gate.Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  auto job =
      client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5), Soon());
  ASSERT_TRUE(job.ok());
  gate.AwaitVisitor();
  job->reset();
  pages.Poison();
  const std::vector<Bytes> poison = pages.memory();
  gate.Open();
  // Its work would be done by another load's turn.
  EXPECT_EQ(Match(client.get(), 5, 256), 256u);
  EXPECT_TRUE(pages.memory() == poison);
  EXPECT_EQ(client->Stats().load_failures, 0u);
  EXPECT_EQ(Load(client.get(), pages, 5, 0, 256).token_count, 256u);
}

TEST_F(TroubleTest, ClosingTheClientEndsItsLoadsAndLeavesTheirJobsValid) {
  ASSERT_TRUE(StoreSequence(5, 256));
  auto channel = Wrap();
  Gate gate;
  channel->on_section = [&](FetchedSection*, const CallLimits& limits) {
    gate.Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  auto job =
      client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5), Soon());
  gate.AwaitVisitor();
  client.reset();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 0u);
}

TEST_F(TroubleTest, FullQueueDropsTheRestOfTheChain) {
  auto channel = Wrap();
  Gate gate;
  channel->on_send = [&](const StoreItem&, const CallLimits& limits) {
    gate.Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 12);
  ClientConfig config = TestConfig(channel, geometry_);
  // Four blocks, encoded or not.
  config.staging_bytes_max = RawBytes(geometry_, kBlockTokens) * 9 / 2;
  std::unique_ptr<Client> client = Open(std::move(config), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(768, 5);
  const std::vector<uint32_t> tokens = TestTokens(5, 768);
  // Frames as large as what they are made of.
  pages.Compute(5, ids, 0, 768, Values::kAnyBits);
  auto first = client->Store({tokens}, 0, 640, ids);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(client->Stats().dropped_blocks, 6u);
  gate.Open();
  EXPECT_EQ((*first)->Wait(-1, kLong)->token_count, 256u);
  // There is room again, but nobody could reach them.
  EXPECT_EQ(
      (*(*client->Store({tokens}, 640, 128, ids))->Wait(-1, kLong)).token_count,
      0u);
  EXPECT_EQ(client->Stats().dropped_blocks, 8u);
  EXPECT_EQ(Match(client.get(), 5, 768), 256u);
  // From the hole on it goes again.
  EXPECT_EQ(
      (*(*client->Store({tokens}, 256, 128, ids))->Wait(-1, kLong)).token_count,
      128u);
  EXPECT_EQ(Match(client.get(), 5, 768), 384u);
}

TEST_F(TroubleTest, RefusedBlockTakesTheRestOfTheChainAlong) {
  auto channel = Wrap();
  std::atomic<int> acks{0};
  channel->on_ack = [&](StoreAck* ack) {
    if (++acks == 3)
      ack->status = absl::ResourceExhaustedError("the disk is full");
  };
  LogText log;
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 12);
  ClientConfig config = TestConfig(channel, geometry_);
  config.logger = log.logger();
  std::unique_ptr<Client> client = Open(std::move(config), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(768, 5);
  const std::vector<uint32_t> tokens = TestTokens(5, 768);
  pages.Compute(5, ids, 0, 768);
  auto job = client->Store({tokens}, 0, 256, ids);
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
  EXPECT_EQ(client->Stats().store_failures, 1u);
  const uint64_t before = client->Stats().dropped_blocks;
  // The fourth may have been on its way already; what comes later is not sent,
  // unless it was.
  auto behind = client->Store({tokens}, 192, 512, ids);
  EXPECT_EQ((*behind)->Wait(-1, kLong)->token_count, 0u);
  EXPECT_EQ(client->Stats().dropped_blocks, before + 8);
  EXPECT_EQ(log.Count("the disk is full"), 1u);
}

TEST_F(TroubleTest, FlushWaitsForWhatIsUnderWayNoLongerThanItIsTold) {
  auto channel = Wrap();
  Gate gate;
  channel->on_send = [&](const StoreItem&, const CallLimits& limits) {
    gate.Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 1);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  EXPECT_TRUE(client->Flush(absl::ZeroDuration()).ok());
  auto job = client->Store({TestTokens(5, 64)}, 0, 64, {0});
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->Flush(absl::Milliseconds(20))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(-1, absl::Milliseconds(20)).status()));
  gate.Open();
  EXPECT_TRUE(client->Flush(kLong).ok());
  EXPECT_EQ((*job)->Wait(-1, absl::ZeroDuration())->token_count, 64u);
}

TEST_F(TroubleTest, ClosingTheClientGivesUpWhatIsNotSent) {
  auto channel = Wrap();
  Gate gate;
  channel->on_send = [&](const StoreItem&, const CallLimits& limits) {
    gate.Wait(limits.cancel);
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client = Open(TestConfig(channel, geometry_), &pages);
  auto job = client->Store({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5));
  gate.AwaitVisitor();
  client.reset();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 0u);
}

TEST_F(TroubleTest, WrongArgumentsAreRefusedWithTheReason) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  std::unique_ptr<Client> client =
      *MakeClient(TestConfig(daemon_.Connect(), geometry_));
  const std::vector<uint32_t> tokens = TestTokens(5, 256);
  const std::vector<uint64_t> ids = {0, 1, 2, 3};
  EXPECT_TRUE(absl::IsFailedPrecondition(
      client->Load({tokens}, 0, 64, ids, Soon()).status()));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(client->Store({tokens}, 0, 64, ids).status()));
  PagedCache fewer = pages.cache();
  fewer.layers.pop_back();
  EXPECT_TRUE(absl::IsInvalidArgument(client->RegisterPages(fewer)));
  ASSERT_TRUE(client->RegisterPages(pages.cache()).ok());
  const auto refused = [&](uint64_t first, uint64_t count,
                           const std::vector<uint64_t>& pages) {
    return absl::IsInvalidArgument(
        client->Load({tokens}, first, count, pages, Soon()).status());
  };
  EXPECT_TRUE(refused(0, 60, ids));
  EXPECT_TRUE(refused(32, 64, ids));
  EXPECT_TRUE(refused(0, 320, ids));
  EXPECT_TRUE(refused(128, ~uint64_t{0} - 63, ids));
  EXPECT_TRUE(refused(0, 256, {0, 1, 2}));
  EXPECT_TRUE(refused(0, 256, {0, 1, 2, 4}));
  const std::vector<BlockExtra> unsorted = {{2, {1}}, {1, {1}}};
  EXPECT_TRUE(absl::IsInvalidArgument(
      client->Match({tokens, unsorted}, kLong, Soon()).status()));
}

}  // namespace
}  // namespace latentkv
