#include "client/load_progress.h"

namespace latentkv {

bool LoadProgress::Wanted(uint32_t block) const { return block < good(); }

uint32_t LoadProgress::good() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return good_;
}

void LoadProgress::LayersDone(uint32_t block, uint32_t first, uint32_t last) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (uint32_t layer = first; layer < last; ++layer) {
    if (block >= good_ || done_[uint64_t{block} * layers_ + layer]) continue;
    done_[uint64_t{block} * layers_ + layer] = true;
    if (--missing_[layer] == 0) changed_.notify_all();
  }
}

void LoadProgress::Fail(uint32_t block) {
  std::lock_guard<std::mutex> lock(mutex_);
  FailLocked(block);
}

void LoadProgress::FailLocked(uint32_t block) {
  for (; good_ > block; --good_) {
    for (uint32_t layer = 0; layer < layers_; ++layer) {
      if (!done_[uint64_t{good_ - 1} * layers_ + layer]) --missing_[layer];
    }
  }
  changed_.notify_all();
}

uint32_t LoadProgress::Settle() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (uint32_t block = 0; block < good_; ++block) {
    for (uint32_t layer = 0; layer < layers_; ++layer) {
      if (!done_[uint64_t{block} * layers_ + layer]) FailLocked(block);
    }
  }
  return good_;
}

void LoadProgress::Finish() {
  std::lock_guard<std::mutex> lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

std::optional<uint32_t> LoadProgress::Wait(int32_t layer,
                                           absl::Time deadline) const {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto ready = [&] {
    return finished_ || (layer >= 0 && missing_[layer] == 0);
  };
  if (!changed_.wait_until(lock, absl::ToChronoTime(deadline), ready))
    return std::nullopt;
  return good_;
}

}  // namespace latentkv
