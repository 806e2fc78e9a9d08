// The frames read last, in memory: a bounded LRU in front of the disk. Storing
// puts nothing here: most frames are not read soon, the operating system's
// cache has them as well, and memory for them was half of what a store cost.
#ifndef LATENTKV_STORAGE_MEMORY_TIER_H_
#define LATENTKV_STORAGE_MEMORY_TIER_H_

#include <cstdint>
#include <list>

#include "absl/container/flat_hash_map.h"
#include "storage/block_store.h"

namespace latentkv {

// Frames by sequence number, which is never used twice: an entry cannot go
// stale. Not thread-safe.
class MemoryTier {
 public:
  explicit MemoryTier(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}

  // Drops those used longest ago until `frame` fits; does nothing with one that
  // is larger than the tier.
  void Insert(uint64_t sequence, SharedBytes frame);
  // Without owner if it is not here.
  SharedBytes Find(uint64_t sequence);
  void Erase(uint64_t sequence);
  uint64_t bytes() const { return bytes_; }

 private:
  struct Slot {
    uint64_t sequence;
    SharedBytes frame;
  };

  const uint64_t capacity_;
  uint64_t bytes_ = 0;
  std::list<Slot> slots_;  // Used last first.
  absl::flat_hash_map<uint64_t, std::list<Slot>::iterator> by_sequence_;
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_MEMORY_TIER_H_
