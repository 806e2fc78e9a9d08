#include "client/store_ledger.h"

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

// Somebody else may have stored a lost block since. A chain that goes on
// growing is lost anew with each block of it.
constexpr absl::Duration kLostDuration = absl::Minutes(1);

}  // namespace

bool StoreLedger::Lost(const Digest& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const absl::Time* when = lost_.Find(key);
  return when != nullptr && clock_->Now() - *when < kLostDuration;
}

uint64_t StoreLedger::Begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  return *under_way_.insert(++last_sequence_).first;
}

void StoreLedger::End(uint64_t sequence) {
  std::lock_guard<std::mutex> lock(mutex_);
  EndLocked(sequence);
}

void StoreLedger::Admit(StagedBlock* block) {
  std::lock_guard<std::mutex> lock(mutex_);
  block->sequence = ++last_sequence_;
  under_way_.insert(block->sequence);
  lost_.Erase(block->key);
}

void StoreLedger::Stored(const StagedBlock& block) {
  ++counters_->stored_blocks;
  counters_->stored_bytes += block.frame->size();
  counters_->stored_raw_bytes += block.raw_bytes;
  counters_->device_encoded_blocks += block.on_device;
  counters_->guarded_blocks += block.guarded;
  block.progress->Stored(block.index, block.frame->size(), block.exact,
                         block.loss_chain);
  std::lock_guard<std::mutex> lock(mutex_);
  EndLocked(block, false);
}

void StoreLedger::Failed(const StagedBlock& block, const absl::Status& status) {
  ++counters_->store_failures;
  if (!absl::IsCancelled(status)) {
    log_->Warn(Failure::kStore,
               absl::StrCat("a block is not stored, nor what is behind it: ",
                            status.message()));
  }
  block.progress->Lost(block.index);
  std::lock_guard<std::mutex> lock(mutex_);
  EndLocked(block, true);
}

void StoreLedger::Unreachable(const StagedBlock& block) {
  ++counters_->dropped_blocks;
  block.progress->Lost(block.index);
  std::lock_guard<std::mutex> lock(mutex_);
  EndLocked(block, true);
}

void StoreLedger::Dropped(const Digest& key) {
  ++counters_->dropped_blocks;
  std::lock_guard<std::mutex> lock(mutex_);
  lost_.Set(key, clock_->Now());
}

void StoreLedger::StoredElsewhere(const Digest& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  lost_.Erase(key);
}

void StoreLedger::LostElsewhere(const Digest& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  lost_.Set(key, clock_->Now());
}

void StoreLedger::EndLocked(const StagedBlock& block, bool lost) {
  if (lost) lost_.Set(block.key, clock_->Now());
  EndLocked(block.sequence);
}

void StoreLedger::EndLocked(uint64_t sequence) {
  under_way_.erase(sequence);
  changed_.notify_all();
}

bool StoreLedger::Flush(absl::Time deadline) const {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t last = last_sequence_;
  return changed_.wait_until(lock, absl::ToChronoTime(deadline), [&] {
    return under_way_.empty() || *under_way_.begin() > last;
  });
}

}  // namespace latentkv
