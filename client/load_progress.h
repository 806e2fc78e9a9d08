// Which blocks of a load are good, and which of its layers are in their pages.
// No I/O.
#ifndef LATENTKV_CLIENT_LOAD_PROGRESS_H_
#define LATENTKV_CLIENT_LOAD_PROGRESS_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/time/time.h"

namespace latentkv {

// Blocks [0, good) are good: a block that failed takes all behind it along.
// Thread-safe.
class LoadProgress {
 public:
  // Of `blocks` blocks with `layers` layers each, all of them good so far.
  LoadProgress(uint32_t blocks, uint32_t layers)
      : layers_(layers),
        good_(blocks),
        done_(uint64_t{blocks} * layers),
        missing_(layers, blocks) {}

  // Block `block` has not failed, nor has one before it.
  bool Wanted(uint32_t block) const;
  uint32_t good() const;
  // Layers [first, last) of `block` are in their pages.
  void LayersDone(uint32_t block, uint32_t first, uint32_t last);
  void Fail(uint32_t block);
  // Nothing more comes, and no page is written any more: blocks with a layer
  // missing have failed. Returns the number of good blocks.
  uint32_t Settle();
  // Waiters may go: the job is over. After Settle.
  void Finish();

  // Good blocks once all of them have layer `layer` (any that is negative: once
  // it is finished); nullopt if that is not so at `deadline`.
  std::optional<uint32_t> Wait(int32_t layer, absl::Time deadline) const;

 private:
  void FailLocked(uint32_t block);

  const uint32_t layers_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  uint32_t good_;
  bool finished_ = false;
  std::vector<bool> done_;         // [blocks][layers]
  std::vector<uint32_t> missing_;  // Good blocks that lack the layer.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_LOAD_PROGRESS_H_
