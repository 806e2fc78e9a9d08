// The cache and admin services on a BlockStore.
#ifndef LATENTKV_SERVER_CACHE_SERVICE_H_
#define LATENTKV_SERVER_CACHE_SERVICE_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <shared_mutex>

#include "absl/time/time.h"
#include "core/clock.h"
#include "latentkv/v1/admin.grpc.pb.h"
#include "latentkv/v1/cache.grpc.pb.h"
#include "server/admission.h"
#include "storage/block_store.h"

namespace latentkv {

// The project's: server/CMakeLists.txt.
inline constexpr char kVersion[] = LATENTKV_VERSION;

struct ServiceLimits {
  int fetches = 64;  // Running at once; one more is RESOURCE_EXHAUSTED.
  int stores = 64;
  // Being put or got at once: each is held in memory whole.
  int bases = 2;
  // Frames that all fetches keep in memory between their sections.
  uint64_t fetch_held_bytes = uint64_t{1} << 30;
  uint64_t basis_bytes_max = uint64_t{1} << 30;
  // Kept; their list still fits a message.
  uint64_t sessions = uint64_t{1} << 16;
};

// What it writes are FetchChunks, laid out by hand.
using FetchStream =
    grpc::ServerSplitStreamer<v1::FetchRequest, grpc::ByteBuffer>;

class CacheService final : public v1::Cache::Service {
 public:
  // `store` and `clock` outlive it; `store` is open.
  CacheService(BlockStore* store, const Clock* clock,
               const ServiceLimits& limits);

  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*,
                      v1::LookupResponse*) override;
  grpc::Status Store(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::StoreResponse, v1::StoreRequest>*) override;
  grpc::Status Forget(grpc::ServerContext*, const v1::ForgetRequest*,
                      v1::ForgetResponse*) override;

  grpc::Status PutSession(grpc::ServerContext*, const v1::PutSessionRequest*,
                          v1::PutSessionResponse*) override;
  grpc::Status GetSession(grpc::ServerContext*, const v1::GetSessionRequest*,
                          v1::Session*) override;
  grpc::Status ListSessions(grpc::ServerContext*,
                            const v1::ListSessionsRequest*,
                            v1::ListSessionsResponse*) override;
  grpc::Status DeleteSession(grpc::ServerContext*,
                             const v1::DeleteSessionRequest*,
                             v1::DeleteSessionResponse*) override;

  grpc::Status PutBasis(grpc::ServerContext*,
                        grpc::ServerReader<v1::BasisChunk>*,
                        v1::PutBasisResponse*) override;
  grpc::Status GetBasis(grpc::ServerContext*, const v1::GetBasisRequest*,
                        grpc::ServerWriter<v1::BasisChunk>*) override;
  grpc::Status ListBases(grpc::ServerContext*, const v1::ListBasesRequest*,
                         v1::ListBasesResponse*) override;

  // From its return on no frame is stored any more, and none is being stored.
  void Drain();
  // Waits until no fetch and no transfer of a basis runs, or until `deadline`.
  void AwaitReads(absl::Time deadline);
  uint64_t sessions() const { return sessions_; }

 private:
  grpc::Status StreamFetch(grpc::ServerContext* context, FetchStream* stream);
  void CountSessions();
  absl::Status StoreOne(const v1::StoreRequest& request);
  absl::StatusOr<Bytes> ReceiveBasis(grpc::ServerReader<v1::BasisChunk>* reader,
                                     Digest* digest) const;
  absl::Status KeepBasis(const Digest& digest, const Bytes& basis);

  BlockStore* const store_;
  const Clock* const clock_;
  const ServiceLimits limits_;
  Admission fetches_, stores_, bases_;
  ByteBudget held_;
  std::atomic<uint64_t> sessions_{0};
  // A session is read and written again to keep its creation time.
  std::mutex sessions_mutex_;
  std::mutex bases_mutex_;
  std::shared_mutex drain_mutex_;  // Shared by each frame being stored.
  std::atomic<bool> draining_{false};
};

class AdminService final : public v1::Admin::Service {
 public:
  AdminService(BlockStore* store, CacheService* cache, const Clock* clock)
      : store_(store), cache_(cache), clock_(clock), started_(clock->Now()) {}
  grpc::Status Stats(grpc::ServerContext*, const v1::StatsRequest*,
                     v1::StatsResponse*) override;
  grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest*,
                     v1::DrainResponse*) override;

 private:
  BlockStore* const store_;
  CacheService* const cache_;
  const Clock* const clock_;
  const absl::Time started_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_CACHE_SERVICE_H_
