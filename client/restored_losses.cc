#include "client/restored_losses.h"

#include <algorithm>

namespace latentkv {

void RestoredLosses::Restored(const Digest& key, float loss_chain) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (loss_chain > 0) {
    losses_.Set(key, loss_chain);
  } else {
    losses_.Erase(key);
  }
}

void RestoredLosses::Computed(const Digest& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  losses_.Erase(key);
}

float RestoredLosses::Inherited(absl::Span<const Digest> prefix) const {
  std::lock_guard<std::mutex> lock(mutex_);
  float inherited = 0;
  if (losses_.empty()) return inherited;
  for (const Digest& key : prefix) {
    if (const float* loss = losses_.Find(key))
      inherited = std::max(inherited, *loss);
  }
  return inherited;
}

}  // namespace latentkv
