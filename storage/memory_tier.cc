#include "storage/memory_tier.h"

#include <utility>

namespace latentkv {

void MemoryTier::Insert(uint64_t sequence, SharedBytes frame) {
  if (frame.bytes.size() > capacity_) return;
  Erase(sequence);
  while (bytes_ > capacity_ - frame.bytes.size()) Erase(slots_.back().sequence);
  bytes_ += frame.bytes.size();
  slots_.push_front({sequence, std::move(frame)});
  by_sequence_[sequence] = slots_.begin();
}

SharedBytes MemoryTier::Find(uint64_t sequence) {
  auto found = by_sequence_.find(sequence);
  if (found == by_sequence_.end()) return {};
  slots_.splice(slots_.begin(), slots_, found->second);
  return found->second->frame;
}

void MemoryTier::Erase(uint64_t sequence) {
  auto found = by_sequence_.find(sequence);
  if (found == by_sequence_.end()) return;
  bytes_ -= found->second->frame.bytes.size();
  slots_.erase(found->second);
  by_sequence_.erase(found);
}

}  // namespace latentkv
