// The daemon as its client sees it. Errors carry the codes of
// latentkv/v1/cache.proto; a daemon that is away is Unavailable, a call past
// its limit DeadlineExceeded, a cancelled one Cancelled.
#ifndef LATENTKV_TRANSPORT_CACHE_CHANNEL_H_
#define LATENTKV_TRANSPORT_CACHE_CHANNEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/encoding.h"

namespace latentkv {

// Cancels the calls that were given it, those that run and those to come. Any
// thread. Outlives its calls.
class CancelToken {
 public:
  void Cancel();
  bool cancelled() const;
  // For channels: `hook` runs once, at Cancel, or now if that was before. It
  // does not run any more when Unhook has returned; it may not call the token.
  uint64_t Hook(std::function<void()> hook);
  void Unhook(uint64_t id);

 private:
  mutable std::mutex mutex_;
  bool cancelled_ = false;
  uint64_t next_id_ = 1;
  std::vector<std::pair<uint64_t, std::function<void()>>> hooks_;
};

// Every call ends by `deadline` at the latest.
struct CallLimits {
  absl::Time deadline = absl::Now() + absl::Seconds(5);
  CancelToken* cancel = nullptr;  // May be null.

  static CallLimits In(absl::Duration duration, CancelToken* cancel = nullptr) {
    return {absl::Now() + duration, cancel};
  }
};

struct RemoteRecord {
  Digest key;
  Encoding encoding;
  uint64_t frame_bytes = 0;
  uint32_t section_count = 0;
  float loss_chain = 0;
};

struct LookupQuery {
  std::vector<Digest> keys;  // In chain order.
  bool accept_exact = true;
  std::vector<Digest> accept_bases;
  float loss_chain_max = 0;
  uint32_t lease_ms = 0;
};

struct LookupAnswer {
  std::vector<RemoteRecord> records;  // Of keys[0..n).
  uint64_t lease_id = 0;
};

// One section, or the news that a record is gone. The spans are valid as long
// as somebody holds `owner`. Checksums have been verified by the daemon, not on
// this side of the wire.
struct FetchedSection {
  uint32_t record = 0;  // Index into the request.
  uint32_t section = 0;
  bool missing = false;  // The record is gone; no further section of it comes.
  // With a record's first section: the frame's bytes before its sections.
  ByteSpan header;
  ByteSpan payload;
  std::shared_ptr<const void> owner;
};
// Returning false ends the call with Cancelled.
using FetchCallback = std::function<bool(const FetchedSection&)>;

struct StoreItem {
  uint64_t sequence = 0;
  Digest parent;  // Zero for the chain's first block.
  bool sync = false;
  // Kept until it has been sent, not copied.
  std::shared_ptr<const Bytes> frame;
};
struct StoreAck {
  uint64_t sequence = 0;
  absl::Status status;  // OK: stored, or there already.
};

// One thread may Send while another reads. Acknowledgements come in the order
// of Send.
class StoreStream {
 public:
  virtual ~StoreStream() = default;  // Cancels what still runs.
  // False when the stream broke: Finish tells why. Blocks while the daemon's
  // window is full.
  virtual bool Send(const StoreItem& item) = 0;
  // No more sends. Reading goes on.
  virtual void SendDone() = 0;
  // Waits for the next acknowledgement; false at the end of the stream.
  virtual bool ReadAck(StoreAck* ack) = 0;
  // Once, after ReadAck returned false.
  virtual absl::Status Finish() = 0;
};

struct RemoteSession {
  std::string name;
  Digest last_key;
  std::vector<uint32_t> tokens;
  std::string record;  // The client's own bytes.
  int64_t created_ms = 0, updated_ms = 0;
  bool pinned = false;
  uint64_t stored_bytes = 0;
};

struct RemoteBasis {
  Digest digest;
  uint64_t bytes = 0;
};

struct RemoteStats {
  std::string version;
  uint64_t records = 0, stored_bytes = 0, disk_bytes = 0, capacity_bytes = 0,
           memory_bytes = 0;
  uint64_t hits = 0, misses = 0, fetched_bytes = 0, evicted_records = 0,
           quarantined_records = 0;
  uint64_t sessions = 0, uptime_ms = 0, stores = 0, stores_refused = 0;
};

// Thread-safe.
class CacheChannel {
 public:
  virtual ~CacheChannel() = default;

  virtual absl::StatusOr<LookupAnswer> Lookup(const LookupQuery& query,
                                              const CallLimits& limits) = 0;
  // Sections in group-major order. The lease is released when the call ends.
  virtual absl::Status Fetch(absl::Span<const RemoteRecord> records,
                             uint64_t lease_id, const CallLimits& limits,
                             const FetchCallback& callback) = 0;
  // The limits hold for the whole stream.
  virtual std::unique_ptr<StoreStream> OpenStore(const CallLimits& limits) = 0;
  // Releases the lease (0 for none) and removes every encoding of the keys; the
  // number of records removed.
  virtual absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys,
                                          uint64_t lease_id,
                                          const CallLimits& limits) = 0;

  virtual absl::Status PutSession(const RemoteSession& session,
                                  const CallLimits& limits) = 0;
  virtual absl::StatusOr<RemoteSession> GetSession(
      absl::string_view name, const CallLimits& limits) = 0;
  // Without tokens and records.
  virtual absl::StatusOr<std::vector<RemoteSession>> ListSessions(
      const CallLimits& limits) = 0;
  virtual absl::Status DeleteSession(absl::string_view name,
                                     const CallLimits& limits) = 0;

  // The digest of `basis`, under which the daemon now has it.
  virtual absl::StatusOr<Digest> PutBasis(ByteSpan basis,
                                          const CallLimits& limits) = 0;
  virtual absl::StatusOr<Bytes> GetBasis(const Digest& digest,
                                         const CallLimits& limits) = 0;
  virtual absl::StatusOr<std::vector<RemoteBasis>> ListBases(
      const CallLimits& limits) = 0;

  virtual absl::StatusOr<RemoteStats> Stats(const CallLimits& limits) = 0;
  virtual absl::Status Drain(const CallLimits& limits) = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_CACHE_CHANNEL_H_
