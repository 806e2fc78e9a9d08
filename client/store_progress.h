// What became of the blocks of one store.
#ifndef LATENTKV_CLIENT_STORE_PROGRESS_H_
#define LATENTKV_CLIENT_STORE_PROGRESS_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "client/client.h"

namespace latentkv {

// Thread-safe.
class StoreProgress {
 public:
  explicit StoreProgress(uint32_t blocks) : blocks_(blocks), open_(blocks) {}

  // Each block is settled once.
  void Stored(uint32_t block, uint64_t frame_bytes, bool exact,
              float loss_chain);
  void Lost(uint32_t block);
  // Another rank has it now, and stores it unless it says otherwise to its own
  // engine.
  void StoredElsewhere(uint32_t block);

  // Once all blocks are settled: the stored ones before the first that was
  // lost. DeadlineExceeded.
  absl::StatusOr<TransferResult> Wait(absl::Time deadline) const;

 private:
  struct Block {
    bool stored = false, elsewhere = false, exact = false;
    float loss_chain = 0;
    uint64_t frame_bytes = 0;
  };
  void Settle(uint32_t block, const Block& state);

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<Block> blocks_;
  uint32_t open_;
};

std::unique_ptr<Job> MakeStoreJob(
    std::shared_ptr<const StoreProgress> progress);

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STORE_PROGRESS_H_
