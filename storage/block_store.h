// Keys to opaque bytes: the interface behind the daemon.
#ifndef LATENTKV_STORAGE_BLOCK_STORE_H_
#define LATENTKV_STORAGE_BLOCK_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/encoding.h"

namespace latentkv {

struct RecordId {
  Digest key;
  Encoding encoding;
  friend bool operator==(const RecordId&, const RecordId&) = default;
};

struct RecordEntry {
  RecordId id;
  uint64_t frame_bytes = 0;
  uint32_t section_count = 0;
  float loss_chain = 0;
};

struct PrefixQuery {
  absl::Span<const Digest> keys;  // In chain order.
  bool accept_exact = false;
  std::vector<Digest> accept_bases;
  float loss_chain_max = 0;
  uint32_t lease_ms = 0;
};

struct PrefixHit {
  // Of keys[0..n): of each the acceptable encoding with the least loss.
  std::vector<RecordEntry> records;
  uint64_t lease_id = 0;  // 0 when nothing is leased.
};

// Bytes that stay where they are while a copy of this lives.
struct SharedBytes {
  ByteSpan bytes;
  std::shared_ptr<const void> owner;
};

struct StoreStats {
  uint64_t records = 0, stored_bytes = 0, disk_bytes = 0, capacity_bytes = 0,
           memory_bytes = 0;
  uint64_t hits = 0, misses = 0, fetched_bytes = 0, evicted_records = 0,
           quarantined_records = 0;
  uint64_t stores = 0, stores_refused = 0;
};

// Of a request that waits in an engine's queue.
inline constexpr absl::Duration kLeaseMax = absl::Minutes(10);
// 32 of the longest chains; some 100 MB of memory.
inline constexpr uint64_t kLeasedRecordsMax = uint64_t{1} << 20;

// Thread-safe. Every call returns Unavailable after Close.
class BlockStore {
 public:
  virtual ~BlockStore() = default;

  // Verifies and stores a frame under the id that its header names. OK also
  // when it is there already. Once OK it survives kill -9; with `sync`, the
  // loss of power. `parent` is the key of the block before it in its chain,
  // zero for none: by it a chain is evicted from its end. InvalidArgument for a
  // frame that does not verify, ResourceExhausted when the disk is full or
  // nothing more can be evicted.
  virtual absl::Status Put(ByteSpan frame, const Digest& parent, bool sync) = 0;

  // The longest prefix of which every block is stored. Touches the chain from
  // its last block to its first. A lease lasts kLeaseMax at the longest, and
  // none is given while kLeasedRecordsMax records are leased.
  virtual absl::StatusOr<PrefixHit> FindPrefix(const PrefixQuery& query) = 0;

  // The frame's bytes as stored, header and every section verified. NotFound;
  // DataLoss after quarantining the record.
  virtual absl::StatusOr<SharedBytes> Get(const RecordId& id) = 0;

  virtual void ReleaseLease(uint64_t lease_id) = 0;
  // Removes every encoding of the keys; the number of records removed.
  virtual absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys) = 0;

  // Small named values that eviction never takes (sessions, bases): `space` is
  // a short name of the caller's.
  virtual absl::Status PutNamed(absl::string_view space, absl::string_view name,
                                ByteSpan value) = 0;
  virtual absl::StatusOr<Bytes> GetNamed(absl::string_view space,
                                         absl::string_view name) = 0;
  virtual absl::StatusOr<std::vector<std::string>> ListNamed(
      absl::string_view space) = 0;
  virtual absl::Status DeleteNamed(absl::string_view space,
                                   absl::string_view name) = 0;

  virtual StoreStats Stats() const = 0;
  // Flushes and closes; what was acknowledged stays.
  virtual absl::Status Close() = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_BLOCK_STORE_H_
