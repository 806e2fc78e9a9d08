#include "storage/rocksdb_block_store.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/frame.h"
#include "storage/database.h"
#include "storage/store.h"

namespace latentkv {
namespace {

// How long a Put waits for space of removed records before it is refused.
constexpr std::chrono::seconds kReclaimWait{2};
constexpr size_t kSpaceBytesMax = 255;

}  // namespace

absl::Status Store::Start() {
  absl::Status damaged;
  absl::Status status = database_->Scan(
      Family::kIndex, "", [&](absl::string_view key, absl::string_view value) {
        absl::StatusOr<IndexedRecord> record =
            ParseRecord(AsBytes(key), AsBytes(value));
        std::lock_guard lock(mutex_);
        if (!record.ok()) {
          damaged = record.status();
        } else {
          index_.Restore(*record);
        }
      });
  if (status.ok()) status = damaged;
  if (!status.ok())
    return absl::Status(status.code(), absl::StrCat("index of ", config_.path,
                                                    ": ", status.message()));
  status = EvictToCapacity();
  if (!status.ok()) return status;
  BoundDisk();
  MeasureDisk();
  maintenance_ = std::thread([this] { Maintain(); });
  return absl::OkStatus();
}

void Store::Remove(const IndexedRecord& record, std::vector<Change>* changes) {
  changes->push_back(
      {Family::kIndex, SerializeRecordId(record.entry.id), {}, true});
  changes->push_back(
      {Family::kPayload, SequenceKey(record.sequence), {}, true});
}

absl::Status Store::Write(std::vector<Change> changes,
                          const IndexedRecord* added) {
  {
    std::lock_guard lock(mutex_);
    if (refused_)
      return absl::ResourceExhaustedError(
          "the disk refuses to store; it is tried again twice a second");
  }
  std::vector<Change> all;
  for (const IndexedRecord& record : uncertain_) Remove(record, &all);
  all.insert(all.end(), std::make_move_iterator(changes.begin()),
             std::make_move_iterator(changes.end()));
  absl::Status status = database_->Write(all);
  if (status.ok()) {
    uncertain_.clear();
    return status;
  }
  if (added != nullptr) uncertain_.push_back(*added);
  if (absl::IsResourceExhausted(status)) {
    std::lock_guard lock(mutex_);
    refused_ = true;
  }
  return status;
}

absl::Status Store::WriteOne(Change change) {
  std::lock_guard write_lock(write_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
  }
  std::vector<Change> changes;
  changes.push_back(std::move(change));
  return Write(std::move(changes));
}

absl::Status Store::Put(ByteSpan frame, const Digest& parent, bool sync) {
  absl::StatusOr<FrameHeader> header = VerifyFrame(frame);
  absl::Status status;
  if (!header.ok()) {
    status = absl::InvalidArgumentError(header.status().message());
  } else {
    status = WaitForSpace(frame.size());
    if (status.ok()) status = PutVerified(*header, frame, parent);
    if (status.ok() && sync) status = database_->Sync();
  }
  std::lock_guard lock(mutex_);
  if (status.ok()) {
    ++counts_.stores;
  } else {
    ++counts_.stores_refused;
  }
  return status;
}

absl::Status Store::WaitForSpace(uint64_t bytes) {
  std::unique_lock lock(mutex_);
  auto fits = [&] {
    return closed_ ||
           disk_bytes_ + bytes <= disk_bytes_max_ + config_.capacity_bytes / 4;
  };
  const bool fitted = changed_.wait_for(lock, kReclaimWait, fits);
  if (closed_) return Closed();
  if (fitted) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      "space of evicted records is still being given back; store again later");
}

absl::Status Store::PutVerified(const FrameHeader& header, ByteSpan frame,
                                const Digest& parent) {
  std::lock_guard write_lock(write_mutex_);
  IndexedRecord record;
  record.entry = {{header.key, header.encoding},
                  frame.size(),
                  static_cast<uint32_t>(header.sections.size()),
                  header.loss_chain};
  record.first_token = header.first_token;
  std::vector<IndexedRecord> victims;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    if (index_.Find(record.entry.id) != nullptr) return absl::OkStatus();
    if (index_.bytes() + frame.size() > config_.capacity_bytes) {
      auto found =
          index_.Victims(index_.bytes() + frame.size() - config_.capacity_bytes,
                         config_.clock->Now());
      if (!found.has_value())
        return absl::ResourceExhaustedError(
            "the store is full and nothing can be evicted");
      victims = *std::move(found);
    }
    // Before the write, so that nobody finds and leases what it takes away.
    for (const IndexedRecord& victim : victims) index_.Erase(victim.entry.id);
    record.sequence = index_.NextSequence();
    record = index_.Place(record, parent);
  }
  const Bytes entry = SerializeRecord(record);
  std::vector<Change> changes;
  for (const IndexedRecord& victim : victims) Remove(victim, &changes);
  changes.push_back(
      {Family::kIndex, SerializeRecordId(record.entry.id), entry});
  changes.push_back({Family::kPayload, SequenceKey(record.sequence), frame});
  absl::Status status = Write(std::move(changes), &record);
  std::lock_guard lock(mutex_);
  if (!status.ok()) {
    for (const IndexedRecord& victim : victims) index_.Insert(victim);
    return status;
  }
  for (const IndexedRecord& victim : victims) tier_.Erase(victim.sequence);
  counts_.evicted_records += victims.size();
  index_.Insert(record);
  disk_bytes_ += frame.size();
  if (disk_bytes_ > disk_bytes_max_) changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<PrefixHit> Store::FindPrefix(const PrefixQuery& query) {
  std::lock_guard lock(mutex_);
  if (closed_) return Closed();
  PrefixHit hit = index_.FindPrefix(query, config_.clock->Now());
  counts_.hits += hit.records.size();
  counts_.misses += query.keys.size() - hit.records.size();
  return hit;
}

absl::StatusOr<SharedBytes> Store::ReadVerified(const IndexedRecord& record) {
  absl::StatusOr<SharedBytes> frame =
      database_->Read(Family::kPayload, SequenceKey(record.sequence));
  // The index names it, so that its absence is damage too, unless it has been
  // removed meanwhile (Get looks).
  if (absl::IsNotFound(frame.status()))
    return absl::DataLossError("payload is gone");
  if (!frame.ok()) return frame.status();
  absl::StatusOr<FrameHeader> header = VerifyFrame(frame->bytes);
  if (!header.ok()) return absl::DataLossError(header.status().message());
  if (!(RecordId{header->key, header->encoding} == record.entry.id)) {
    return absl::DataLossError("payload is another record's");
  }
  return frame;
}

absl::StatusOr<SharedBytes> Store::Get(const RecordId& id) {
  IndexedRecord record;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    const IndexedRecord* found = index_.Find(id);
    if (found == nullptr) return absl::NotFoundError("not stored");
    record = *found;
    if (SharedBytes frame = tier_.Find(record.sequence);
        frame.owner != nullptr) {
      counts_.fetched_bytes += frame.bytes.size();
      return frame;
    }
  }
  absl::StatusOr<SharedBytes> frame = ReadVerified(record);
  if (!frame.ok()) {
    {
      std::lock_guard lock(mutex_);
      const IndexedRecord* now = index_.Find(id);
      if (now == nullptr || now->sequence != record.sequence)
        return absl::NotFoundError("removed meanwhile");
    }
    if (absl::IsDataLoss(frame.status())) Quarantine(record);
    return frame.status();
  }
  std::lock_guard lock(mutex_);
  counts_.fetched_bytes += frame->bytes.size();
  const IndexedRecord* now = index_.Find(id);
  if (now != nullptr && now->sequence == record.sequence)
    tier_.Insert(record.sequence, *frame);
  return frame;
}

void Store::Quarantine(const IndexedRecord& record) {
  std::lock_guard write_lock(write_mutex_);
  {
    std::lock_guard lock(mutex_);
    const IndexedRecord* now = index_.Find(record.entry.id);
    if (now == nullptr || now->sequence != record.sequence) return;
    index_.Erase(record.entry.id);
    ++counts_.quarantined_records;
  }
  std::vector<Change> changes;
  Remove(record, &changes);
  // Should the disk refuse, then it is removed with the next write that
  // succeeds.
  if (!Write(std::move(changes)).ok()) uncertain_.push_back(record);
}

void Store::ReleaseLease(uint64_t lease_id) {
  std::lock_guard lock(mutex_);
  index_.ReleaseLease(lease_id);
}

absl::StatusOr<uint64_t> Store::Forget(absl::Span<const Digest> keys) {
  std::lock_guard write_lock(write_mutex_);
  std::vector<IndexedRecord> records;
  std::vector<Change> changes;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    for (const Digest& key : keys) {
      for (const RecordId& id : index_.FindAll(key))
        records.push_back(*index_.Find(id));
    }
  }
  if (records.empty()) return 0;
  for (const IndexedRecord& record : records) Remove(record, &changes);
  absl::Status status = Write(std::move(changes));
  if (!status.ok()) return status;
  std::lock_guard lock(mutex_);
  uint64_t removed = 0;
  for (const IndexedRecord& record : records) {
    tier_.Erase(record.sequence);
    removed += index_.Erase(record.entry.id);  // Once, should a key come twice.
  }
  return removed;
}

namespace {

// `space` behind its length, so that no space is the prefix of another.
std::string NamedKey(absl::string_view space, absl::string_view name) {
  return absl::StrCat(std::string(1, static_cast<char>(space.size())), space,
                      name);
}

absl::Status CheckSpace(absl::string_view space) {
  if (!space.empty() && space.size() <= kSpaceBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a space's name has 1 to ", kSpaceBytesMax, " bytes"));
}

}  // namespace

absl::Status Store::PutNamed(absl::string_view space, absl::string_view name,
                             ByteSpan value) {
  absl::Status status = CheckSpace(space);
  if (status.ok())
    status = WriteOne({Family::kNamed, NamedKey(space, name), value});
  return status;
}

absl::StatusOr<Bytes> Store::GetNamed(absl::string_view space,
                                      absl::string_view name) {
  absl::Status status = CheckSpace(space);
  if (!status.ok()) return status;
  absl::StatusOr<SharedBytes> value =
      database_->Read(Family::kNamed, NamedKey(space, name));
  if (!value.ok()) return value.status();
  return Bytes(value->bytes.begin(), value->bytes.end());
}

absl::StatusOr<std::vector<std::string>> Store::ListNamed(
    absl::string_view space) {
  absl::Status status = CheckSpace(space);
  std::vector<std::string> names;
  const std::string prefix = NamedKey(space, "");
  if (status.ok()) {
    status = database_->Scan(Family::kNamed, prefix,
                             [&](absl::string_view key, absl::string_view) {
                               names.emplace_back(key.substr(prefix.size()));
                             });
  }
  if (!status.ok()) return status;
  return names;
}

absl::Status Store::DeleteNamed(absl::string_view space,
                                absl::string_view name) {
  absl::Status status = CheckSpace(space);
  if (status.ok())
    status = WriteOne({Family::kNamed, NamedKey(space, name), {}, true});
  return status;
}

StoreStats Store::Stats() const {
  const uint64_t disk_bytes = database_->DiskBytes();
  std::lock_guard lock(mutex_);
  StoreStats stats = counts_;
  stats.records = index_.records();
  stats.stored_bytes = index_.bytes();
  stats.disk_bytes = disk_bytes;
  stats.capacity_bytes = config_.capacity_bytes;
  stats.memory_bytes = tier_.bytes();
  return stats;
}

absl::Status Store::Close() {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return absl::OkStatus();
    closed_ = true;
    changed_.notify_all();
  }
  database_->StopReclaim();
  if (maintenance_.joinable()) maintenance_.join();
  (void)WriteTouched();
  return database_->Close();
}

absl::StatusOr<std::unique_ptr<BlockStore>> RocksDbBlockStore::Open(
    Config config) {
  if (config.path.empty())
    return absl::InvalidArgumentError("the store needs a data folder");
  if (config.capacity_bytes == 0)
    return absl::InvalidArgumentError("the store needs a capacity above zero");
  if (config.clock == nullptr) config.clock = &SystemClock();
  absl::StatusOr<std::unique_ptr<Database>> database =
      Database::Open(config.path, config.capacity_bytes);
  if (!database.ok()) return database.status();
  auto store = std::make_unique<Store>(std::move(config), *std::move(database));
  absl::Status status = store->Start();
  if (!status.ok()) return status;
  return store;
}

}  // namespace latentkv
