#include "transport/cache_channel.h"

#include <algorithm>

namespace latentkv {

void CancelToken::Cancel() {
  // Hooks run under the lock: that is what lets Unhook promise that none runs
  // after it.
  std::lock_guard<std::mutex> lock(mutex_);
  if (cancelled_) return;
  cancelled_ = true;
  for (auto& [id, hook] : hooks_) hook();
  hooks_.clear();
}

bool CancelToken::cancelled() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return cancelled_;
}

uint64_t CancelToken::Hook(std::function<void()> hook) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t id = next_id_++;
  if (cancelled_) {
    hook();
  } else {
    hooks_.emplace_back(id, std::move(hook));
  }
  return id;
}

void CancelToken::Unhook(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  hooks_.erase(
      std::remove_if(hooks_.begin(), hooks_.end(),
                     [id](const auto& entry) { return entry.first == id; }),
      hooks_.end());
}

}  // namespace latentkv
