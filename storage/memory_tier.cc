#include "storage/memory_tier.h"

#include <utility>

namespace latentkv {

void MemoryTier::Insert(uint64_t sequence, std::shared_ptr<const Bytes> frame) {
  if (!Takes(frame->size())) return;
  Erase(sequence);
  while (bytes_ > capacity_ - frame->size()) Erase(slots_.back().sequence);
  bytes_ += frame->size();
  slots_.push_front({sequence, std::move(frame)});
  by_sequence_[sequence] = slots_.begin();
}

std::shared_ptr<const Bytes> MemoryTier::Find(uint64_t sequence) {
  auto found = by_sequence_.find(sequence);
  if (found == by_sequence_.end()) return nullptr;
  slots_.splice(slots_.begin(), slots_, found->second);
  return found->second->frame;
}

void MemoryTier::Erase(uint64_t sequence) {
  auto found = by_sequence_.find(sequence);
  if (found == by_sequence_.end()) return;
  bytes_ -= found->second->frame->size();
  slots_.erase(found->second);
  by_sequence_.erase(found);
}

}  // namespace latentkv
