#include "client/store_progress.h"

#include <utility>

#include "absl/time/clock.h"
#include "core/limits.h"

namespace latentkv {
namespace {

class StoreJob final : public Job {
 public:
  explicit StoreJob(std::shared_ptr<const StoreProgress> progress)
      : progress_(std::move(progress)) {}
  absl::StatusOr<TransferResult> Wait(int32_t,
                                      absl::Duration timeout) override {
    return progress_->Wait(absl::Now() + timeout);
  }

 private:
  const std::shared_ptr<const StoreProgress> progress_;
};

}  // namespace

void StoreProgress::Stored(uint32_t block, uint64_t frame_bytes, bool exact,
                           float loss_chain) {
  Settle(block, {true, false, exact, loss_chain, frame_bytes});
}

void StoreProgress::StoredElsewhere(uint32_t block) {
  Settle(block, {true, true, false, 0, 0});
}

void StoreProgress::Lost(uint32_t block) { Settle(block, {}); }

void StoreProgress::Settle(uint32_t block, const Block& state) {
  std::lock_guard<std::mutex> lock(mutex_);
  blocks_[block] = state;
  if (--open_ == 0) changed_.notify_all();
}

absl::StatusOr<TransferResult> StoreProgress::Wait(absl::Time deadline) const {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!changed_.wait_until(lock, absl::ToChronoTime(deadline),
                           [this] { return open_ == 0; })) {
    return absl::DeadlineExceededError("not all blocks are acknowledged yet");
  }
  TransferResult result;
  for (const Block& block : blocks_) {
    if (!block.stored) break;
    result.token_count += kBlockTokens;
    result.frame_bytes += block.frame_bytes;
    result.exact_blocks += block.exact;
    if (!block.elsewhere) result.loss_chain = block.loss_chain;
  }
  return result;
}

std::unique_ptr<Job> MakeStoreJob(
    std::shared_ptr<const StoreProgress> progress) {
  return std::make_unique<StoreJob>(std::move(progress));
}

}  // namespace latentkv
