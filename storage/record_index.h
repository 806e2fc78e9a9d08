// What is stored, in memory: records by key, in the order in which they may be
// evicted, with leases. No files here.
#ifndef LATENTKV_STORAGE_RECORD_INDEX_H_
#define LATENTKV_STORAGE_RECORD_INDEX_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/time/time.h"
#include "storage/block_store.h"

namespace latentkv {

struct IndexedRecord {
  RecordEntry entry;
  uint64_t sequence = 0;     // Of its payload; never used twice.
  uint32_t first_token = 0;  // Position in its chain.
  uint64_t tick = 0;         // Order of use, rising over restarts.
};

// The value stored with a record id: docs/formats/storage.md.
Bytes SerializeRecord(const IndexedRecord& record);
std::string SerializeRecordId(const RecordId& id);
// DataLoss for bytes that these two do not write.
absl::StatusOr<IndexedRecord> ParseRecord(ByteSpan id, ByteSpan value);

// Records leave in the order of their tick, and within a tick from the highest
// position to the lowest. All blocks of a chain get one tick when they are
// found, and a block stored behind another gets the tick of the block before
// it, so that a chain is taken from its end. Not thread-safe.
class RecordIndex {
 public:
  // A record read back at opening, with its tick; false if the id is there
  // already.
  bool Restore(const IndexedRecord& record);
  // `record` with its tick: that of the chain whose last block is `parent`, or
  // a new one. Of ranks that store a chain together one may be ahead: a block
  // whose parent is not there takes the tick of the chain that was used last.
  IndexedRecord Place(IndexedRecord record, const Digest& parent);
  // Adds a record that Place returned. Its id must not be there.
  void Insert(const IndexedRecord& placed);

  // nullptr if absent; valid until the next change.
  const IndexedRecord* Find(const RecordId& id) const;
  std::vector<RecordId> FindAll(const Digest& key) const;
  // The longest prefix all of whose blocks have an acceptable record, each with
  // the least loss (then fewest bytes); touched, and leased when the query says
  // so, within the bounds of block_store.h.
  PrefixHit FindPrefix(const PrefixQuery& query, absl::Time now);
  bool Erase(const RecordId& id);

  // The records to evict until `bytes` are freed, coldest first, none of them
  // leased; they stay until erased. nullopt if that is not possible.
  std::optional<std::vector<IndexedRecord>> Victims(uint64_t bytes,
                                                    absl::Time now);
  void ReleaseLease(uint64_t lease_id);

  // Up to `limit` records whose tick has changed since they were stored or last
  // taken; unmarks them.
  std::vector<IndexedRecord> TakeTouched(size_t limit);
  size_t touched() const { return touched_.size(); }

  std::vector<RecordId> Ids() const;
  uint64_t records() const { return order_.size(); }
  uint64_t bytes() const { return bytes_; }
  uint64_t NextSequence() { return next_sequence_++; }

 private:
  struct Node {
    IndexedRecord record;
    uint32_t leases = 0;
  };
  struct Colder {
    bool operator()(const Node* a, const Node* b) const;
  };
  struct Lease {
    absl::Time end;
    // With the sequence, as the id may be stored anew.
    std::vector<std::pair<RecordId, uint64_t>> records;
  };
  // The end of a chain that was stored or found lately: who names it as its
  // parent continues it.
  struct Run {
    Digest last;
    uint64_t tick;
  };

  Node* FindNode(const RecordId& id) const;
  Node* BestOf(const Digest& key, const PrefixQuery& query) const;
  void Touch(Node* node, uint64_t tick);
  void AddRun(const Digest& last, uint64_t tick);
  uint64_t AddLease(const std::vector<RecordEntry>& records, absl::Time end);
  void EndLeases(absl::Time now);

  absl::flat_hash_map<Digest, absl::InlinedVector<std::unique_ptr<Node>, 1>>
      by_key_;
  std::set<Node*, Colder> order_;  // Coldest first.
  absl::flat_hash_set<Node*> touched_;
  std::deque<Run> runs_;  // Used last first; one a chain's end.
  absl::flat_hash_map<uint64_t, Lease> leases_;
  std::set<std::pair<absl::Time, uint64_t>> lease_ends_;
  uint64_t bytes_ = 0;
  uint64_t leased_records_ = 0;  // Over all leases.
  uint64_t next_sequence_ = 1;
  uint64_t next_tick_ = 1;
  uint64_t next_lease_ = 1;
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_RECORD_INDEX_H_
