// The block store on RocksDB: docs/formats/storage.md says what lies in the
// folder.
#ifndef LATENTKV_STORAGE_ROCKSDB_BLOCK_STORE_H_
#define LATENTKV_STORAGE_ROCKSDB_BLOCK_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/clock.h"
#include "storage/block_store.h"

namespace latentkv {

class RocksDbBlockStore {
 public:
  struct Config {
    // Created if missing; one process at a time.
    std::string path;
    // Of frames; what removed ones still hold on disk is given back in the
    // background.
    uint64_t capacity_bytes = 0;
    uint64_t memory_tier_bytes = 0;  // Frames kept in memory; 0 for none.
    // Of leases; outlives the store. nullptr for the system's.
    const Clock* clock = nullptr;
  };

  // Returns with the accounting of everything stored before. InvalidArgument
  // without a path or capacity, FailedPrecondition when the folder cannot be
  // used or another process has it, DataLoss when its index is damaged.
  static absl::StatusOr<std::unique_ptr<BlockStore>> Open(Config config);
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_ROCKSDB_BLOCK_STORE_H_
