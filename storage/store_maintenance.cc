// What Store does beside its callers: writes the order of use, gives space
// back, puts damage aside, recovers from a disk that refused.
#include <algorithm>
#include <utility>

#include "storage/store.h"

namespace latentkv {
namespace {

// Order of use is written this many records at a time; a kill -9 forgets at
// most the touches of a period.
constexpr size_t kTouchBatch = 4096;
// The longest pause after reclaims that failed, each of which costs an opening
// of the files.
constexpr std::chrono::milliseconds kReclaimPauseMax{8000};

}  // namespace

absl::Status Store::WriteTouched() {
  std::lock_guard write_lock(write_mutex_);
  while (true) {
    std::vector<IndexedRecord> records;
    {
      std::lock_guard lock(mutex_);
      records = index_.TakeTouched(kTouchBatch);
    }
    if (records.empty())
      return uncertain_.empty() ? absl::OkStatus() : Write({});
    std::vector<Bytes> entries;
    for (const IndexedRecord& record : records)
      entries.push_back(SerializeRecord(record));
    std::vector<Change> changes;
    for (size_t i = 0; i < records.size(); ++i) {
      changes.push_back(
          {Family::kIndex, SerializeRecordId(records[i].entry.id), entries[i]});
    }
    // Touches that the disk refuses are lost: only the order of eviction after
    // a restart suffers.
    absl::Status status = Write(std::move(changes));
    if (!status.ok()) return status;
  }
}

bool Store::MeasureDisk() {
  const uint64_t bytes = database_->DiskBytes();
  std::lock_guard lock(mutex_);
  disk_bytes_ = bytes;
  changed_.notify_all();
  return bytes <= disk_bytes_max_;
}

void Store::BoundDisk() {
  const uint64_t bytes_max =
      config_.capacity_bytes + database_->OverheadBytes();
  std::lock_guard lock(mutex_);
  disk_bytes_max_ = bytes_max;
}

bool Store::ReclaimSpace() {
  BoundDisk();
  if (MeasureDisk()) return true;
  if (std::chrono::steady_clock::now() < reclaim_at_) return false;
  absl::Status status = database_->Reclaim([this] { return MeasureDisk(); });
  if (status.ok()) {
    reclaim_pause_ = kMaintenancePeriod;
    return MeasureDisk();
  }
  const bool cleared = absl::IsDataLoss(status) && QuarantineDamaged();
  if (!cleared) {
    reclaim_at_ = std::chrono::steady_clock::now() + reclaim_pause_;
    reclaim_pause_ = std::min(2 * reclaim_pause_, kReclaimPauseMax);
  }
  std::lock_guard lock(mutex_);
  refused_ = true;
  return cleared;
}

// A payload that cannot be read stands in the way of rewriting its file: finds
// them all, once a failed reclaim.
bool Store::QuarantineDamaged() {
  std::vector<RecordId> ids;
  uint64_t before = 0;
  {
    std::lock_guard lock(mutex_);
    ids = index_.Ids();
    before = counts_.quarantined_records;
  }
  for (const RecordId& id : ids) {
    IndexedRecord record;
    {
      std::lock_guard lock(mutex_);
      const IndexedRecord* found = index_.Find(id);
      if (closed_) return false;
      if (found == nullptr) continue;
      record = *found;
    }
    if (absl::IsDataLoss(ReadVerified(record).status())) Quarantine(record);
  }
  std::lock_guard lock(mutex_);
  return counts_.quarantined_records > before;
}

void Store::Maintain() {
  bool in_vain = false;  // The last round; then not at once again.
  while (true) {
    bool refused = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kMaintenancePeriod, [&] {
        return closed_ ||
               (!in_vain && (refused_ || disk_bytes_ > disk_bytes_max_));
      });
      if (closed_) return;
      refused = std::exchange(refused_, false);
    }
    if (refused && !database_->Recover().ok()) {
      in_vain = true;
      std::lock_guard lock(mutex_);
      refused_ = true;
      continue;
    }
    (void)WriteTouched();
    in_vain = !ReclaimSpace();
  }
}

absl::Status Store::EvictToCapacity() {
  std::lock_guard write_lock(write_mutex_);
  std::vector<IndexedRecord> victims;
  {
    std::lock_guard lock(mutex_);
    if (index_.bytes() <= config_.capacity_bytes) return absl::OkStatus();
    victims = index_
                  .Victims(index_.bytes() - config_.capacity_bytes,
                           config_.clock->Now())
                  .value();
  }
  std::vector<Change> changes;
  for (const IndexedRecord& victim : victims) Remove(victim, &changes);
  absl::Status status = Write(std::move(changes));
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  for (const IndexedRecord& victim : victims) index_.Erase(victim.entry.id);
  counts_.evicted_records += victims.size();
  return absl::OkStatus();
}

}  // namespace latentkv
