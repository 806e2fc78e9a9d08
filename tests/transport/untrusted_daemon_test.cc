// A daemon that answers what it should not: the channel says so, and hands
// nothing on.
#include <grpcpp/grpcpp.h>

#include <mutex>

#include "gtest/gtest.h"
#include "latentkv/v1/cache.grpc.pb.h"
#include "tests/server/blocks.h"
#include "transport/convert.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

// Answers what the test put here.
class LyingCache final : public v1::Cache::Service {
 public:
  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*,
                      v1::LookupResponse* response) override {
    std::lock_guard lock(mutex);
    *response = lookup;
    return grpc::Status::OK;
  }
  grpc::Status Fetch(grpc::ServerContext*, const v1::FetchRequest*,
                     grpc::ServerWriter<v1::FetchChunk>* writer) override {
    std::lock_guard lock(mutex);
    writer->Write(chunk);
    return grpc::Status::OK;
  }
  grpc::Status GetSession(grpc::ServerContext*, const v1::GetSessionRequest*,
                          v1::Session* response) override {
    response->set_last_key("no key");
    return grpc::Status::OK;
  }
  grpc::Status GetBasis(grpc::ServerContext*, const v1::GetBasisRequest*,
                        grpc::ServerWriter<v1::BasisChunk>* writer) override {
    v1::BasisChunk part;
    part.set_data("another basis");
    writer->Write(part);
    return grpc::Status::OK;
  }
  grpc::Status ListBases(grpc::ServerContext*, const v1::ListBasesRequest*,
                         v1::ListBasesResponse* response) override {
    response->add_digests("short");
    response->add_bytes(1);
    return grpc::Status::OK;
  }

  std::mutex mutex;
  v1::LookupResponse lookup;
  v1::FetchChunk chunk;
};

class UntrustedDaemonTest : public ::testing::Test {
 protected:
  UntrustedDaemonTest() {
    int port = 0;
    server_ = grpc::ServerBuilder()
                  .AddListeningPort("127.0.0.1:0",
                                    grpc::InsecureServerCredentials(), &port)
                  .RegisterService(&cache_)
                  .BuildAndStart();
    channel_ = *MakeGrpcChannel("127.0.0.1:" + std::to_string(port));
  }
  ~UntrustedDaemonTest() override {
    server_->Shutdown(std::chrono::system_clock::now());
  }
  static CallLimits Soon() { return CallLimits::In(absl::Seconds(10)); }
  absl::Status LookupTwo() {
    LookupQuery query;
    query.keys = TestKeys(2);
    return channel_->Lookup(query, Soon()).status();
  }
  void AnswerKeys(const std::vector<Digest>& keys,
                  const std::string& encoding = Encoding::Exact().ToBytes()) {
    std::lock_guard lock(cache_.mutex);
    cache_.lookup.Clear();
    for (const Digest& key : keys) {
      v1::RecordRef* ref = cache_.lookup.add_records()->mutable_ref();
      ref->set_key(DigestBytes(key));
      ref->set_encoding(encoding);
    }
  }

  LyingCache cache_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<CacheChannel> channel_;
};

TEST_F(UntrustedDaemonTest, LookupAcceptsOnlyTheKeysItAskedForInTheirOrder) {
  AnswerKeys({TestKey(0)});
  EXPECT_TRUE(LookupTwo().ok());
  AnswerKeys({TestKey(0), TestKey(1)});
  EXPECT_TRUE(LookupTwo().ok());
  AnswerKeys({TestKey(0), TestKey(0)});
  EXPECT_FALSE(LookupTwo().ok());
  AnswerKeys({TestKey(0), TestKey(1), TestKey(2)});
  EXPECT_FALSE(LookupTwo().ok());
}

TEST_F(UntrustedDaemonTest, LookupRefusesEncodingsOfAnotherForm) {
  AnswerKeys({TestKey(0)}, std::string(35, '\0'));
  EXPECT_FALSE(LookupTwo().ok());
}

TEST_F(UntrustedDaemonTest, FetchHandsOnNoRecordThatWasNotAskedFor) {
  {
    std::lock_guard lock(cache_.mutex);
    cache_.chunk.set_record(1);
  }
  const std::vector<RemoteRecord> records = {{TestKey(0), Encoding::Exact()}};
  const absl::Status status =
      channel_->Fetch(records, 0, Soon(), [](const FetchedSection&) {
        ADD_FAILURE() << "handed on";
        return true;
      });
  EXPECT_FALSE(status.ok());
}

TEST_F(UntrustedDaemonTest, ABasisMustHaveTheDigestThatWasAskedFor) {
  EXPECT_TRUE(
      absl::IsDataLoss(channel_->GetBasis(TestKey(0), Soon()).status()));
  EXPECT_TRUE(
      channel_->GetBasis(Sha256({AsBytes("another basis")}), Soon()).ok());
}

TEST_F(UntrustedDaemonTest, KeysOfTheWrongLengthAreErrors) {
  EXPECT_FALSE(channel_->GetSession("talk", Soon()).ok());
  EXPECT_FALSE(channel_->ListBases(Soon()).ok());
}

TEST_F(UntrustedDaemonTest, WhatItDoesNotKnowIsUnimplemented) {
  EXPECT_EQ(channel_->Stats(Soon()).status().code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace latentkv
