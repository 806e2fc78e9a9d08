#include "storage/database.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "core/checksum.h"
#include "rocksdb/cache.h"
#include "rocksdb/convenience.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/listener.h"
#include "rocksdb/options.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"

// RocksDB checksums each byte twice on its way to disk, in software in Debian's
// build: a third of what the daemon did to store. It calls this function of its
// own through the dynamic linker, which takes the program's
// (docs/decisions/0013-a-checksum-in-the-place-of-rocksdbs.md).
namespace rocksdb::crc32c {
uint32_t Extend(uint32_t crc, const char* data, size_t size) {
  return latentkv::Crc32c({reinterpret_cast<const uint8_t*>(data), size}, crc);
}
}  // namespace rocksdb::crc32c

namespace latentkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr size_t kFamilies = 3;
constexpr std::array<const char*, kFamilies> kFamilyNames = {"index", "payload",
                                                             "named"};
// A named value of this size or more (a basis) is written to a file of its own
// kind, not moved by compactions.
constexpr uint64_t kNamedBlobBytes = 64 << 10;
// What opening writes besides the log that it replays: tables of keys, a
// manifest. Some MiB, generously.
constexpr uint64_t kProbeBytes = 4 * kMiB;
// Of the blob files, the oldest, that a round of Reclaim rewrites. What lives
// in them is on disk twice until it is done.
constexpr double kReclaimShare = 0.125;
// A share of what is left is less each round: to pass all files once, half of
// whose bytes are removed, takes 8 ln(1 / (1 - .5)) / .5 = 11.1 rounds.
constexpr int kReclaimRoundsMax = 12;

rocksdb::Slice ToSlice(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
absl::string_view ToView(const rocksdb::Slice& slice) {
  return {slice.data(), slice.size()};
}

bool IsDamage(const rocksdb::Status& status) {
  return status.IsCorruption() || status.IsPathNotFound();
}

absl::Status FromRead(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNotFound()) return absl::NotFoundError("not stored");
  if (IsDamage(status)) return absl::DataLossError(status.ToString());
  return absl::UnavailableError(status.ToString());
}

// Buffers and files in proportion to the capacity, so that a small store does
// not hold its capacity again in logs.
uint64_t BufferBytes(uint64_t capacity) {
  return std::clamp(capacity / 32, kMiB, 64 * kMiB);
}
uint64_t BlobFileBytes(uint64_t capacity) {
  return std::clamp(capacity / 64, kMiB, 256 * kMiB);
}

// Debian's build of RocksDB keeps assertions: who asks more of a file of its
// that the disk has refused than to be closed ends the process. Hence these
// two, and the refusals below
// (docs/decisions/0014-a-refusal-is-recovered-by-opening-anew.md).

// Keeps RocksDB from trying by itself to recover the log of writes, and tells
// `failed` of what a disk refused it.
class NoRecovery : public rocksdb::EventListener {
 public:
  explicit NoRecovery(std::atomic<bool>* failed) : failed_(failed) {}

 private:
  void OnBackgroundError(rocksdb::BackgroundErrorReason,
                         rocksdb::Status* status) override {
    if (!IsDamage(*status)) *failed_ = true;
  }
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }

  std::atomic<bool>* const failed_;
};

// In the place of RocksDB's file of messages, which would meet the full disk
// too. What matters comes as a status.
class NoMessages : public rocksdb::Logger {
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

rocksdb::DBOptions MakeDbOptions(uint64_t capacity, std::atomic<bool>* failed) {
  rocksdb::DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A record of the log that does not verify is one lost Put (or a frame that
  // checks itself): skip it, keep the rest.
  options.wal_recovery_mode =
      rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  options.max_total_wal_size = 2 * BufferBytes(capacity);
  options.max_background_jobs = 4;
  options.max_open_files = 512;
  options.bytes_per_sync = kMiB;
  options.info_log = std::make_shared<NoMessages>();
  options.stats_dump_period_sec = 0;
  options.listeners.push_back(std::make_shared<NoRecovery>(failed));
  options.max_bgerror_resume_count = 0;
  return options;
}

rocksdb::ColumnFamilyOptions MakeFamilyOptions(
    Family family, uint64_t capacity,
    const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions options;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = BufferBytes(capacity);
  options.max_write_buffer_number = 3;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  if (family == Family::kIndex) return options;
  options.enable_blob_files = true;
  options.min_blob_size = family == Family::kPayload ? 0 : kNamedBlobBytes;
  options.blob_file_size = BlobFileBytes(capacity);
  options.blob_compression_type = rocksdb::kNoCompression;
  // Of payloads Reclaim decides; named values are few, and go with compactions.
  options.enable_blob_garbage_collection = family == Family::kNamed;
  return options;
}

// A value where RocksDB put it: a buffer of its own, or a block of the cache,
// which must then stay.
struct Pinned {
  std::shared_ptr<rocksdb::Cache> cache;
  rocksdb::PinnableSlice value;
};

class RocksDatabase : public Database {
 public:
  RocksDatabase(std::string path, uint64_t capacity)
      : path_(std::move(path)),
        capacity_(capacity),
        cache_(rocksdb::NewLRUCache(32 * kMiB)) {}
  ~RocksDatabase() override { (void)Close(); }

  absl::Status OpenFiles();  // Under life_.
  absl::Status Start() {
    absl::MutexLock lock(&life_);
    return OpenFiles();
  }

  absl::Status Write(const std::vector<Change>& changes) override;
  absl::Status Sync() override;
  absl::StatusOr<SharedBytes> Read(Family family,
                                   const std::string& key) override;
  absl::Status Scan(Family family, const std::string& prefix,
                    const Visitor& visit) override;
  absl::Status Recover() override;
  absl::Status Reclaim(const std::function<bool()>& enough) override;
  void StopReclaim() override { stop_reclaim_ = true; }
  uint64_t DiskBytes() const override;
  uint64_t OverheadBytes() const override;
  absl::Status Close() override;

 private:
  static absl::Status Gone() {
    return absl::UnavailableError("the store is closed");
  }
  rocksdb::ColumnFamilyHandle* Handle(Family family) const {
    return handles_[static_cast<size_t>(family)];
  }
  void CloseFiles();  // Under life_.
  bool HasSpace() const;
  // OK, or how the disk refuses until the files are opened anew. Keeps a
  // refusal that `status` is.
  absl::Status Remember(const rocksdb::Status& status);
  absl::Status Refused() const {
    return absl::ResourceExhaustedError(
        "the disk refuses to store; waiting for space");
  }

  const std::string path_;
  const uint64_t capacity_;
  const std::shared_ptr<rocksdb::Cache> cache_;
  std::atomic<bool> stop_reclaim_ = false;
  // Of the members below: shared by every call, exclusive to open and close,
  // which readers that follow each other without a gap must not keep waiting.
  mutable absl::Mutex life_;
  bool closed_ = false;
  std::unique_ptr<rocksdb::DB> db_;
  // As Family; default comes last.
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
  // Over every call that writes to the log, so that none reaches a log that has
  // just failed.
  std::mutex log_mutex_;
  // Since the files were opened: writes are refused, and the disk refused some.
  std::atomic<bool> refused_ = false, failed_ = false;
};

absl::Status RocksDatabase::OpenFiles() {
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (size_t i = 0; i < kFamilies; ++i) {
    families.emplace_back(
        kFamilyNames[i],
        MakeFamilyOptions(static_cast<Family>(i), capacity_, cache_));
  }
  families.emplace_back(rocksdb::kDefaultColumnFamilyName,
                        rocksdb::ColumnFamilyOptions());
  rocksdb::DB* db = nullptr;
  // Storing must not take cores from an engine on the same machine that are
  // needed to compute or to restore.
  rocksdb::Env::Default()->LowerThreadPoolCPUPriority(rocksdb::Env::HIGH);
  rocksdb::Env::Default()->LowerThreadPoolCPUPriority(rocksdb::Env::LOW);
  refused_ = failed_ = false;
  const rocksdb::Status status = rocksdb::DB::Open(
      MakeDbOptions(capacity_, &failed_), path_, families, &handles_, &db);
  if (!status.ok()) {
    handles_.clear();
    const std::string text = absl::StrCat("cannot open the data folder ", path_,
                                          ": ", status.ToString());
    if (IsDamage(status)) return absl::DataLossError(text);
    if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
    return absl::FailedPreconditionError(text);
  }
  db_.reset(db);
  return absl::OkStatus();
}

absl::Status RocksDatabase::Remember(const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (!IsDamage(status)) failed_ = true;
  refused_ = true;
  return absl::ResourceExhaustedError(
      absl::StrCat("the disk refuses to store: ", status.ToString()));
}

void RocksDatabase::CloseFiles() {
  if (db_ == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* handle : handles_)
    db_->DestroyColumnFamilyHandle(handle);
  handles_.clear();
  // What was acknowledged is in the log already: on a full disk this fails, and
  // nothing is lost.
  (void)db_->Close();
  db_.reset();
}

absl::Status RocksDatabase::Close() {
  stop_reclaim_ = true;
  absl::MutexLock lock(&life_);
  closed_ = true;
  if (db_ == nullptr) return absl::OkStatus();
  // So that the next opening has no log to replay. On a full disk the log keeps
  // what this cannot write.
  if (!refused_ && !failed_) {
    (void)db_->Flush(rocksdb::FlushOptions(),
                     {Handle(Family::kIndex), Handle(Family::kPayload),
                      Handle(Family::kNamed)});
  }
  CloseFiles();
  return absl::OkStatus();
}

absl::Status RocksDatabase::Write(const std::vector<Change>& changes) {
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return Gone();
  rocksdb::WriteBatch batch;
  for (const Change& change : changes) {
    rocksdb::Status status =
        change.remove ? batch.Delete(Handle(change.family), change.key)
                      : batch.Put(Handle(change.family), change.key,
                                  ToSlice(change.value));
    if (!status.ok()) return absl::InvalidArgumentError(status.ToString());
  }
  std::lock_guard log_lock(log_mutex_);
  return refused_ || failed_
             ? Refused()
             : Remember(db_->Write(rocksdb::WriteOptions(), &batch));
}

absl::Status RocksDatabase::Sync() {
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return Gone();
  std::lock_guard log_lock(log_mutex_);
  return refused_ || failed_ ? Refused() : Remember(db_->SyncWAL());
}

absl::StatusOr<SharedBytes> RocksDatabase::Read(Family family,
                                                const std::string& key) {
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return Gone();
  rocksdb::ReadOptions options;
  // RocksDB's software CRC would cost more than reading; a payload's frame has
  // its own.
  options.verify_checksums = family != Family::kPayload;
  auto pinned = std::make_shared<Pinned>();
  pinned->cache = cache_;
  absl::Status status =
      FromRead(db_->Get(options, Handle(family), key, &pinned->value));
  if (!status.ok()) return status;
  const ByteSpan bytes = AsBytes(ToView(pinned->value));
  return SharedBytes{bytes, std::move(pinned)};
}

absl::Status RocksDatabase::Scan(Family family, const std::string& prefix,
                                 const Visitor& visit) {
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return Gone();
  rocksdb::ReadOptions options;
  options.fill_cache = false;
  std::unique_ptr<rocksdb::Iterator> entry(
      db_->NewIterator(options, Handle(family)));
  for (entry->Seek(prefix); entry->Valid() && entry->key().starts_with(prefix);
       entry->Next()) {
    visit(ToView(entry->key()), ToView(entry->value()));
  }
  return FromRead(entry->status());
}

// Whether files can be given up for opening them anew: the log must fit a
// second time, as what is replayed goes to files. Allocated, not asked for:
// quotas, limits of a file's size and blocks kept for root show only so.
bool RocksDatabase::HasSpace() const {
  uint64_t bytes = 2 * kProbeBytes;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(path_, error), end;
       !error && entry != end; entry.increment(error)) {
    std::error_code gone;
    const uint64_t size =
        entry->path().extension() == ".log" ? entry->file_size(gone) : 0;
    if (!gone) bytes += size;
  }
  bool fits = true;
  std::vector<std::string> probes;
  for (uint64_t done = 0; done < bytes && fits; done += kProbeBytes) {
    probes.push_back(absl::StrCat(path_, "/latentkv-probe-", probes.size()));
    const int file =
        open(probes.back().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    fits = file >= 0 && posix_fallocate(file, 0, kProbeBytes) == 0;
    if (file >= 0) close(file);
  }
  for (const std::string& probe : probes) std::filesystem::remove(probe, error);
  return fits;
}

absl::Status RocksDatabase::Recover() {
  {
    absl::ReaderMutexLock lock(&life_);
    if (closed_) return Gone();
    if (db_ != nullptr && !failed_) {
      // Damage alone stopped it: the log is sound, and RocksDB goes on.
      if (!refused_ || db_->Resume().ok()) {
        refused_ = false;
        return absl::OkStatus();
      }
    }
    if (!HasSpace()) return Refused();
  }
  absl::MutexLock lock(&life_);
  if (closed_) return Gone();
  CloseFiles();
  return OpenFiles();
}

absl::Status RocksDatabase::Reclaim(const std::function<bool()>& enough) {
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return Gone();
  if (refused_ || failed_) return Refused();
  auto from = [this](const rocksdb::Status& status) {
    if (status.IsManualCompactionPaused() || status.IsIncomplete())
      return absl::OkStatus();
    const absl::Status refusal = Remember(status);
    return IsDamage(status) ? absl::DataLossError(status.ToString()) : refusal;
  };
  rocksdb::Status status =
      db_->Flush(rocksdb::FlushOptions(),
                 {Handle(Family::kIndex), Handle(Family::kPayload)});
  if (!status.ok()) return from(status);
  for (int round = 0; round <= kReclaimRoundsMax && !stop_reclaim_ && !enough();
       ++round) {
    rocksdb::CompactRangeOptions options;
    options.exclusive_manual_compaction = false;
    options.bottommost_level_compaction =
        rocksdb::BottommostLevelCompaction::kForce;
    options.canceled = &stop_reclaim_;
    // The first round touches keys alone: it drops the files whose payloads are
    // all removed.
    options.blob_garbage_collection_policy =
        round == 0 ? rocksdb::BlobGarbageCollectionPolicy::kDisable
                   : rocksdb::BlobGarbageCollectionPolicy::kForce;
    // At least one file. A store of few files is small: all of them at once,
    // and once.
    uint64_t files = 0;
    db_->GetIntProperty(Handle(Family::kPayload),
                        rocksdb::DB::Properties::kNumBlobFiles, &files);
    const bool few = files * kReclaimShare < 1;
    if (few && round > 1) break;
    options.blob_garbage_collection_age_cutoff = few ? 1 : kReclaimShare;
    status =
        db_->CompactRange(options, Handle(Family::kPayload), nullptr, nullptr);
    if (!status.ok()) return from(status);
  }
  return absl::OkStatus();
}

uint64_t RocksDatabase::OverheadBytes() const {
  uint64_t bytes = 6 * BufferBytes(capacity_) + 2 * BlobFileBytes(capacity_);
  absl::ReaderMutexLock lock(&life_);
  if (db_ == nullptr) return bytes;
  for (Family family : {Family::kIndex, Family::kNamed}) {
    for (const std::string& property :
         {rocksdb::DB::Properties::kTotalSstFilesSize,
          rocksdb::DB::Properties::kTotalBlobFileSize}) {
      uint64_t held = 0;
      if (db_->GetIntProperty(Handle(family), property, &held)) bytes += held;
    }
  }
  return bytes;
}

uint64_t RocksDatabase::DiskBytes() const {
  uint64_t bytes = 0;
  std::error_code error;
  // Files come and go meanwhile: one that is gone counts nothing.
  for (std::filesystem::directory_iterator entry(path_, error), end;
       !error && entry != end; entry.increment(error)) {
    std::error_code gone;
    const uint64_t size =
        entry->is_regular_file(gone) ? entry->file_size(gone) : 0;
    if (!gone) bytes += size;
  }
  return bytes;
}

}  // namespace

std::string SequenceKey(uint64_t sequence) {
  std::string key(sizeof(sequence), '\0');
  for (size_t i = 0; i < key.size(); ++i)
    key[i] = static_cast<char>(sequence >> (8 * (key.size() - 1 - i)));
  return key;
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(
    const std::string& path, uint64_t capacity_bytes) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return absl::FailedPreconditionError(
        absl::StrCat("cannot create ", path, ": ", error.message()));
  auto database = std::make_unique<RocksDatabase>(path, capacity_bytes);
  absl::Status status = database->Start();
  if (!status.ok()) return status;
  return database;
}

}  // namespace latentkv
