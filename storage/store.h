// The block store over a database: an index of records in memory, payloads and
// the index's entries in files, and a thread that keeps both in bounds.
#ifndef LATENTKV_STORAGE_STORE_H_
#define LATENTKV_STORAGE_STORE_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/frame.h"
#include "storage/database.h"
#include "storage/memory_tier.h"
#include "storage/record_index.h"
#include "storage/rocksdb_block_store.h"

namespace latentkv {

// How often the maintenance thread looks at the disk, and tries again to write
// after a refusal.
inline constexpr std::chrono::milliseconds kMaintenancePeriod{500};

class Store : public BlockStore {
 public:
  Store(RocksDbBlockStore::Config config, std::unique_ptr<Database> database)
      : config_(std::move(config)),
        database_(std::move(database)),
        tier_(config_.memory_tier_bytes) {}
  ~Store() override { (void)Close(); }

  // Reads the index back, then starts the maintenance thread.
  absl::Status Start();

  absl::Status Put(ByteSpan frame, const Digest& parent, bool sync) override;
  absl::StatusOr<PrefixHit> FindPrefix(const PrefixQuery& query) override;
  absl::StatusOr<SharedBytes> Get(const RecordId& id) override;
  void ReleaseLease(uint64_t lease_id) override;
  absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys) override;
  absl::Status PutNamed(absl::string_view space, absl::string_view name,
                        ByteSpan value) override;
  absl::StatusOr<Bytes> GetNamed(absl::string_view space,
                                 absl::string_view name) override;
  absl::StatusOr<std::vector<std::string>> ListNamed(
      absl::string_view space) override;
  absl::Status DeleteNamed(absl::string_view space,
                           absl::string_view name) override;
  StoreStats Stats() const override;
  absl::Status Close() override;

 private:
  static absl::Status Closed() {
    return absl::UnavailableError("the store is closed");
  }
  static void Remove(const IndexedRecord& record, std::vector<Change>* changes);

  absl::Status PutVerified(const FrameHeader& header, ByteSpan frame,
                           const Digest& parent);
  // Writes, and when the disk refuses asks for recovery, and refuses itself
  // until then. Every write of the store goes through here, under write_mutex_.
  // `added` is a record among the changes.
  absl::Status Write(std::vector<Change> changes,
                     const IndexedRecord* added = nullptr);
  absl::Status WriteOne(Change change);
  absl::Status WaitForSpace(uint64_t bytes);
  void Quarantine(const IndexedRecord& record);
  absl::StatusOr<SharedBytes> ReadVerified(const IndexedRecord& record);

  // Of the maintenance thread: store_maintenance.cc.
  void Maintain();
  absl::Status WriteTouched();
  // False when files are above their bound although all of them were rewritten.
  bool ReclaimSpace();
  bool MeasureDisk();
  void BoundDisk();
  // For a folder that was filled under a larger capacity.
  absl::Status EvictToCapacity();
  // Whether there were any.
  bool QuarantineDamaged();

  const RocksDbBlockStore::Config config_;
  const std::unique_ptr<Database> database_;
  std::thread maintenance_;
  // Of that thread alone.
  std::chrono::milliseconds reclaim_pause_ = kMaintenancePeriod;
  std::chrono::steady_clock::time_point reclaim_at_{};

  // Held over a decision and the write that carries it out, so that disk and
  // index change in the same order. Taken before mutex_.
  std::mutex write_mutex_;
  // Written by a batch that the disk refused: may or may not be there after a
  // recovery. Under write_mutex_.
  std::vector<IndexedRecord> uncertain_;

  mutable std::mutex mutex_;  // Of everything below.
  std::condition_variable changed_;
  bool closed_ = false;
  bool refused_ = false;
  uint64_t disk_bytes_ = 0;  // As last measured, plus what was written since.
  uint64_t disk_bytes_max_ = 0;
  RecordIndex index_;
  MemoryTier tier_;
  StoreStats counts_;  // The counters alone; sizes are asked of their owners.
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_STORE_H_
