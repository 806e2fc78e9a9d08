// The services over a socket, on RocksDB.
#include <grpcpp/grpcpp.h>

#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/server.h"
#include "storage/rocksdb_block_store.h"
#include "tests/server/blocks.h"
#include "tests/storage/scratch_folder.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(const ServiceLimits& limits,
             uint64_t capacity_bytes = uint64_t{1} << 30) {
    channel_.reset();
    server_.reset();
    store_.reset();
    auto store =
        RocksDbBlockStore::Open({.path = folder_.path() + "/data",
                                 .capacity_bytes = capacity_bytes,
                                 .memory_tier_bytes = uint64_t{1} << 20,
                                 .clock = &SystemClock()});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    ServerConfig config;
    config.listen = {"127.0.0.1:0", "unix:" + folder_.path() + "/socket"};
    config.limits = limits;
    auto server = Server::Start(config, store_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = *MakeGrpcChannel(server_->addresses()[0]);
  }
  static CallLimits Soon() { return CallLimits::In(absl::Seconds(10)); }
  LookupAnswer Find(uint32_t count, uint32_t lease_ms = 0) {
    LookupQuery query;
    query.keys = TestKeys(count);
    query.lease_ms = lease_ms;
    auto answer = channel_->Lookup(query, Soon());
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? *answer : LookupAnswer{};
  }
  std::vector<std::shared_ptr<const Bytes>> Keep(uint32_t count,
                                                 uint32_t sections,
                                                 size_t section_bytes) {
    std::vector<std::shared_ptr<const Bytes>> frames;
    for (uint32_t i = 0; i < count; ++i)
      frames.push_back(TestFrame(i, sections, section_bytes));
    auto statuses = StoreFrames(channel_.get(), frames);
    EXPECT_THAT(statuses, SizeIs(count));
    for (const absl::Status& status : statuses)
      EXPECT_TRUE(status.ok()) << status;
    return frames;
  }

  ScratchFolder folder_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<CacheChannel> channel_;
};

TEST_F(ServiceTest, FetchAnswersTheStoredBytesGroupMajor) {
  auto frames = Keep(3, 2, 1000);
  LookupAnswer answer = Find(3);
  ASSERT_THAT(answer.records, SizeIs(3));
  EXPECT_EQ(answer.records[1].frame_bytes, frames[1]->size());
  EXPECT_EQ(answer.records[1].section_count, 2u);
  FetchedFrames fetched = FetchFrames(channel_.get(), answer.records);
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  EXPECT_THAT(fetched.order,
              ElementsAre(std::pair(0, 0), std::pair(0, 1), std::pair(0, 2),
                          std::pair(1, 0), std::pair(1, 1), std::pair(1, 2)));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(fetched.frames[i], *frames[i]) << i;
}

TEST_F(ServiceTest, FetchIsTheSameWhenNothingMayBeHeldBetweenSections) {
  ServiceLimits limits;
  limits.fetch_held_bytes = 0;
  Start(limits);
  auto frames = Keep(3, 5, 3000);
  FetchedFrames fetched = FetchFrames(channel_.get(), Find(3).records);
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(fetched.frames[i], *frames[i]) << i;
}

TEST_F(ServiceTest, UnixSocketServesTheSameStore) {
  auto frames = Keep(1, 2, 500);
  auto local = *MakeGrpcChannel("unix:" + folder_.path() + "/socket");
  EXPECT_EQ(FetchFrames(local.get(), Find(1).records).frames[0], *frames[0]);
}

TEST_F(ServiceTest, LookupEndsAtAHole) {
  StoreFrames(channel_.get(),
              {TestFrame(0, 1, 10), TestFrame(1, 1, 10), TestFrame(3, 1, 10)});
  EXPECT_THAT(Find(4).records, SizeIs(2));
  StoreFrames(channel_.get(), {TestFrame(2, 1, 10)});
  EXPECT_THAT(Find(4).records, SizeIs(4));
}

TEST_F(ServiceTest, RecordThatIsGoneComesAsMissingAndTheRestStays) {
  auto frames = Keep(3, 2, 100);
  LookupAnswer answer = Find(3);
  EXPECT_EQ(*channel_->Forget({TestKey(1)}, 0, Soon()), 1u);
  FetchedFrames fetched = FetchFrames(channel_.get(), answer.records);
  ASSERT_TRUE(fetched.status.ok()) << fetched.status;
  EXPECT_THAT(fetched.missing, ElementsAre(false, true, false));
  EXPECT_TRUE(fetched.frames[1].empty());
  EXPECT_EQ(fetched.frames[0], *frames[0]);
  EXPECT_EQ(fetched.frames[2], *frames[2]);
}

TEST_F(ServiceTest, LeaseIsGivenOnRequestAlone) {
  Keep(2, 1, 100);
  EXPECT_EQ(Find(2).lease_id, 0u);
  LookupAnswer leased = Find(2, 60000);
  EXPECT_NE(leased.lease_id, 0u);
  EXPECT_TRUE(
      FetchFrames(channel_.get(), leased.records, leased.lease_id).status.ok());
}

TEST_F(ServiceTest, LeasedRecordsStayUntilTheFetchOfTheLeaseEnds) {
  Start({}, 3 << 20);
  Keep(2, 1, 1 << 20);
  LookupAnswer leased = Find(2, 60000);
  EXPECT_TRUE(absl::IsResourceExhausted(
      StoreFrames(channel_.get(), {TestFrame(2, 1, 2 << 20)}).at(0)));
  EXPECT_TRUE(
      FetchFrames(channel_.get(), leased.records, leased.lease_id).status.ok());
  EXPECT_TRUE(
      StoreFrames(channel_.get(), {TestFrame(2, 1, 2 << 20)}).at(0).ok());
}

TEST_F(ServiceTest, ChainsStoredSideBySideAreEvictedFromTheirEnds) {
  Start({}, 6 << 20);
  auto stream = channel_->OpenStore(Soon());
  StoreAck ack;
  for (uint32_t block = 0; block < 3; ++block) {
    for (uint32_t chain : {0, 1}) {
      const Digest parent = block == 0 ? Digest{} : TestKey(block - 1, chain);
      ASSERT_TRUE(stream->Send(
          {block, parent, false, TestFrame(block, 1, 1000 << 10, chain)}));
      ASSERT_TRUE(stream->ReadAck(&ack) && ack.status.ok()) << ack.status;
    }
  }
  ASSERT_TRUE(
      StoreFrames(channel_.get(), {TestFrame(9, 1, 1 << 20)}).at(0).ok());
  EXPECT_THAT(Find(3).records, SizeIs(2));
  LookupQuery other;
  other.keys = TestKeys(3, 1);
  EXPECT_THAT(channel_->Lookup(other, Soon())->records, SizeIs(3));
}

TEST_F(ServiceTest, WhatIsMalformedIsRefusedWithTheReason) {
  auto stub = v1::Cache::NewStub(grpc::CreateChannel(
      server_->addresses()[0], grpc::InsecureChannelCredentials()));
  auto lookup = [&](const v1::LookupRequest& request) {
    grpc::ClientContext context;
    v1::LookupResponse response;
    return stub->Lookup(&context, request, &response);
  };
  v1::LookupRequest short_key, many_keys, many_bases;
  short_key.add_keys(std::string(31, 'k'));
  EXPECT_EQ(lookup(short_key).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  for (uint32_t i = 0; i <= kChainBlocksMax; ++i)
    many_keys.add_keys(std::string(32, 'k'));
  EXPECT_THAT(lookup(many_keys).error_message(),
              ::testing::HasSubstr("at most"));
  for (int i = 0; i < 17; ++i)
    many_bases.add_accept_bases(std::string(32, 'b'));
  EXPECT_EQ(lookup(many_bases).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  v1::FetchRequest fetch;
  fetch.add_records()->set_key(std::string(32, 'k'));
  grpc::ClientContext context;
  auto reader = stub->Fetch(&context, fetch);
  v1::FetchChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, DamagedFrameIsRefusedAndTheStreamGoesOn) {
  Bytes damaged = *TestFrame(0, 2, 100);
  damaged.back() ^= 1;
  absl::Status finish;
  auto statuses = StoreFrames(
      channel_.get(),
      {std::make_shared<const Bytes>(damaged), TestFrame(1, 2, 100)}, &finish);
  ASSERT_THAT(statuses, SizeIs(2));
  EXPECT_TRUE(absl::IsInvalidArgument(statuses[0])) << statuses[0];
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
  EXPECT_TRUE(finish.ok()) << finish;
  EXPECT_THAT(Find(1).records, SizeIs(0));
}

TEST_F(ServiceTest, LargeFrameGoesThrough) {
  auto frames = Keep(1, 4, 8u << 20);
  EXPECT_EQ(FetchFrames(channel_.get(), Find(1).records).frames[0], *frames[0]);
}

TEST_F(ServiceTest, SessionKeepsItsCreationTimeUntilDeleted) {
  RemoteSession session;
  session.name = "talk";
  session.last_key = TestKey(4);
  session.tokens = {1, 2, 300000};
  session.record = std::string("a\0b", 3);
  ASSERT_TRUE(channel_->PutSession(session, Soon()).ok());
  auto first = channel_->GetSession("talk", Soon());
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->record, session.record);
  EXPECT_EQ(first->tokens, session.tokens);
  EXPECT_EQ(first->last_key, session.last_key);
  EXPECT_GT(first->created_ms, 0);
  session.record = "longer";
  ASSERT_TRUE(channel_->PutSession(session, Soon()).ok());
  auto second = channel_->GetSession("talk", Soon());
  EXPECT_EQ(second->record, "longer");
  EXPECT_EQ(second->created_ms, first->created_ms);
  auto list = channel_->ListSessions(Soon());
  ASSERT_TRUE(list.ok());
  ASSERT_THAT(*list, SizeIs(1));
  EXPECT_EQ((*list)[0].name, "talk");
  EXPECT_TRUE((*list)[0].record.empty());
  ASSERT_TRUE(channel_->DeleteSession("talk", Soon()).ok());
  EXPECT_TRUE(absl::IsNotFound(channel_->GetSession("talk", Soon()).status()));
}

TEST_F(ServiceTest, SessionsAreCountedAlsoAfterARestartAndBounded) {
  ServiceLimits limits;
  limits.sessions = 2;
  Start(limits);
  auto put = [&](const char* name) {
    RemoteSession session;
    session.name = name;
    return channel_->PutSession(session, Soon());
  };
  EXPECT_TRUE(put("a").ok());
  EXPECT_TRUE(put("a").ok());
  EXPECT_TRUE(put("b").ok());
  EXPECT_EQ(channel_->Stats(Soon())->sessions, 2u);
  EXPECT_TRUE(absl::IsResourceExhausted(put("c")));
  Start(limits);
  EXPECT_TRUE(absl::IsResourceExhausted(put("c")));
  EXPECT_TRUE(channel_->DeleteSession("a", Soon()).ok());
  EXPECT_TRUE(channel_->DeleteSession("a", Soon()).ok());
  EXPECT_EQ(channel_->Stats(Soon())->sessions, 1u);
  EXPECT_TRUE(put("c").ok());
}

TEST_F(ServiceTest, SessionWithoutNameIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(channel_->PutSession({}, Soon())));
}

TEST_F(ServiceTest, BasisComesBackUnderItsDigest) {
  Bytes basis(3'000'001);
  for (size_t i = 0; i < basis.size(); ++i)
    basis[i] = static_cast<uint8_t>(i * 31 >> 3);
  auto digest = channel_->PutBasis(basis, Soon());
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, Sha256({basis}));
  EXPECT_EQ(*channel_->GetBasis(*digest, Soon()), basis);
  auto list = channel_->ListBases(Soon());
  ASSERT_TRUE(list.ok());
  ASSERT_THAT(*list, SizeIs(1));
  EXPECT_EQ((*list)[0].bytes, basis.size());
  EXPECT_TRUE(
      absl::IsNotFound(channel_->GetBasis(TestKey(9), Soon()).status()));
}

TEST_F(ServiceTest, BasisWithAnotherDigestIsRefused) {
  auto stub = v1::Cache::NewStub(grpc::CreateChannel(
      server_->addresses()[0], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::PutBasisResponse response;
  auto writer = stub->PutBasis(&context, &response);
  v1::BasisChunk chunk;
  chunk.set_digest(std::string(32, 'x'));
  chunk.set_data("bytes");
  writer->Write(chunk);
  writer->WritesDone();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(*channel_->ListBases(Soon()), SizeIs(0));
}

TEST_F(ServiceTest, StatsCountWhatHappened) {
  auto frames = Keep(2, 1, 100);
  Find(3);
  auto stats = channel_->Stats(Soon());
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->records, 2u);
  EXPECT_EQ(stats->stores, 2u);
  EXPECT_EQ(stats->hits, 2u);
  EXPECT_GE(stats->misses, 1u);
  EXPECT_EQ(stats->stored_bytes, frames[0]->size() + frames[1]->size());
  EXPECT_FALSE(stats->version.empty());
}

TEST_F(ServiceTest, DrainRefusesFramesAndStillReads) {
  auto frames = Keep(1, 1, 100);
  ASSERT_TRUE(channel_->Drain(Soon()).ok());
  auto statuses = StoreFrames(channel_.get(), {TestFrame(1, 1, 100)});
  ASSERT_THAT(statuses, SizeIs(1));
  EXPECT_TRUE(absl::IsUnavailable(statuses[0])) << statuses[0];
  EXPECT_EQ(FetchFrames(channel_.get(), Find(1).records).frames[0], *frames[0]);
}

TEST_F(ServiceTest, StreamsOverTheLimitAreShed) {
  ServiceLimits limits;
  limits.stores = 1;
  Start(limits);
  auto open = channel_->OpenStore(Soon());
  StoreAck ack;
  ASSERT_TRUE(open->Send({1, Digest{}, false, TestFrame(0, 1, 10)}));
  ASSERT_TRUE(open->ReadAck(&ack));
  absl::Status finish;
  StoreFrames(channel_.get(), {TestFrame(1, 1, 10)}, &finish);
  EXPECT_TRUE(absl::IsResourceExhausted(finish)) << finish;
}

TEST_F(ServiceTest, FetchesOverTheLimitAreShedAndTheNextOneIsServed) {
  ServiceLimits limits;
  limits.fetches = 1;
  Start(limits);
  auto frames = Keep(1, 8, 8 << 20);
  const std::vector<RemoteRecord> records = Find(1).records;
  bool shed = false;
  // While this callback runs, the fetch waits for its receiver: its other
  // sections do not fit what lies in between.
  absl::Status first =
      channel_->Fetch(records, 0, Soon(), [&](const FetchedSection& section) {
        if (section.section == 0) {
          shed = absl::IsResourceExhausted(
              FetchFrames(channel_.get(), records).status);
        }
        return true;
      });
  EXPECT_TRUE(first.ok()) << first;
  EXPECT_TRUE(shed);
  // The place is free a moment after the last chunk has come.
  FetchedFrames again;
  for (int i = 0; i < 100 && again.frames.empty(); ++i) {
    again = FetchFrames(channel_.get(), records);
    if (absl::IsResourceExhausted(again.status)) again.frames.clear();
  }
  EXPECT_TRUE(again.frames.at(0) == *frames[0]);
}

TEST_F(ServiceTest, StopEndsStreamsThatClientsHoldOpen) {
  auto stream = channel_->OpenStore(CallLimits::In(absl::Seconds(60)));
  StoreAck ack;
  ASSERT_TRUE(stream->Send({1, Digest{}, false, TestFrame(0, 1, 10)}));
  ASSERT_TRUE(stream->ReadAck(&ack));
  const absl::Time before = absl::Now();
  server_->Stop(absl::Milliseconds(100));
  EXPECT_LT(absl::Now() - before, absl::Seconds(5));
  EXPECT_FALSE(stream->ReadAck(&ack));
}

TEST_F(ServiceTest, AddressThatOthersReachIsRefused) {
  ServerConfig config;
  config.listen = {"0.0.0.0:0"};
  EXPECT_TRUE(
      absl::IsInvalidArgument(Server::Start(config, store_.get()).status()));
}

}  // namespace
}  // namespace latentkv
