#include "storage/record_index.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

constexpr uint8_t kRecordVersion = 1;
// Chains being stored at one time: far above the requests that an engine runs
// together.
constexpr size_t kRunsMax = 1024;

bool Accepts(const PrefixQuery& query, const RecordEntry& entry) {
  if (!(entry.loss_chain <= query.loss_chain_max)) return false;
  const Encoding& encoding = entry.id.encoding;
  if (encoding.IsExact()) return query.accept_exact;
  return std::find(query.accept_bases.begin(), query.accept_bases.end(),
                   encoding.basis) != query.accept_bases.end();
}

}  // namespace

Bytes SerializeRecord(const IndexedRecord& record) {
  Bytes value;
  ByteWriter writer(&value);
  writer.Put(kRecordVersion);
  writer.Put(record.sequence);
  writer.Put(record.entry.frame_bytes);
  writer.Put(record.entry.section_count);
  writer.Put(record.entry.loss_chain);
  writer.Put(record.first_token);
  writer.Put(record.tick);
  return value;
}

std::string SerializeRecordId(const RecordId& id) {
  return std::string(AsText(id.key.span())) + id.encoding.ToBytes();
}

absl::StatusOr<IndexedRecord> ParseRecord(ByteSpan id, ByteSpan value) {
  ByteReader id_reader(id);
  ByteReader reader(value);
  absl::StatusOr<Digest> key =
      DigestFromBytes(id_reader.GetBytes(sizeof(Digest::bytes)));
  absl::StatusOr<Encoding> encoding =
      EncodingFromBytes(id_reader.GetBytes(kEncodingBytes));
  if (!key.ok() || !encoding.ok() || id_reader.remaining() != 0)
    return absl::DataLossError("not a record's id");
  if (const int version = reader.Get<uint8_t>(); version != kRecordVersion) {
    return absl::DataLossError(absl::StrCat(
        "a record's entry of version ", version, ", where this daemon knows ",
        kRecordVersion, ": start it on an empty folder"));
  }
  IndexedRecord record;
  record.entry.id = {*key, *encoding};
  record.sequence = reader.Get<uint64_t>();
  record.entry.frame_bytes = reader.Get<uint64_t>();
  record.entry.section_count = reader.Get<uint32_t>();
  record.entry.loss_chain = reader.Get<float>();
  record.first_token = reader.Get<uint32_t>();
  record.tick = reader.Get<uint64_t>();
  if (!reader.ok() || reader.remaining() != 0)
    return absl::DataLossError("a record's entry has another length");
  return record;
}

bool RecordIndex::Colder::operator()(const Node* a, const Node* b) const {
  return std::tuple(a->record.tick, b->record.first_token, a->record.sequence) <
         std::tuple(b->record.tick, a->record.first_token, b->record.sequence);
}

bool RecordIndex::Restore(const IndexedRecord& record) {
  if (FindNode(record.entry.id) != nullptr) return false;
  Insert(record);
  return true;
}

IndexedRecord RecordIndex::Place(IndexedRecord record, const Digest& parent) {
  auto run = std::find_if(runs_.begin(), runs_.end(),
                          [&](const Run& run) { return run.last == parent; });
  if (run != runs_.end()) {
    record.tick = run->tick;
  } else if (!parent.IsZero() && !by_key_.contains(parent) && !runs_.empty()) {
    record.tick = runs_.front().tick;
  } else {
    record.tick = next_tick_++;
  }
  AddRun(record.entry.id.key, record.tick);
  return record;
}

void RecordIndex::Insert(const IndexedRecord& placed) {
  auto node = std::make_unique<Node>();
  node->record = placed;
  order_.insert(node.get());
  bytes_ += placed.entry.frame_bytes;
  next_sequence_ = std::max(next_sequence_, placed.sequence + 1);
  next_tick_ = std::max(next_tick_, placed.tick + 1);
  by_key_[placed.entry.id.key].push_back(std::move(node));
}

RecordIndex::Node* RecordIndex::FindNode(const RecordId& id) const {
  auto found = by_key_.find(id.key);
  if (found == by_key_.end()) return nullptr;
  for (const auto& node : found->second) {
    if (node->record.entry.id == id) return node.get();
  }
  return nullptr;
}

const IndexedRecord* RecordIndex::Find(const RecordId& id) const {
  const Node* node = FindNode(id);
  return node == nullptr ? nullptr : &node->record;
}

std::vector<RecordId> RecordIndex::FindAll(const Digest& key) const {
  std::vector<RecordId> ids;
  auto found = by_key_.find(key);
  if (found == by_key_.end()) return ids;
  for (const auto& node : found->second) ids.push_back(node->record.entry.id);
  return ids;
}

RecordIndex::Node* RecordIndex::BestOf(const Digest& key,
                                       const PrefixQuery& query) const {
  auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  Node* best = nullptr;
  auto cost = [](const Node* node) {
    return std::tuple(node->record.entry.loss_chain,
                      node->record.entry.frame_bytes);
  };
  for (const auto& node : found->second) {
    if (!Accepts(query, node->record.entry)) continue;
    if (best == nullptr || cost(node.get()) < cost(best)) best = node.get();
  }
  return best;
}

PrefixHit RecordIndex::FindPrefix(const PrefixQuery& query, absl::Time now) {
  EndLeases(now);
  PrefixHit hit;
  const uint64_t tick = next_tick_++;
  for (const Digest& key : query.keys) {
    Node* best = BestOf(key, query);
    if (best == nullptr) break;
    hit.records.push_back(best->record.entry);
    Touch(best, tick);
  }
  if (hit.records.empty()) return hit;
  AddRun(hit.records.back().id.key, tick);
  if (query.lease_ms > 0 &&
      leased_records_ + hit.records.size() <= kLeasedRecordsMax) {
    hit.lease_id = AddLease(
        hit.records, now + std::min<absl::Duration>(
                               absl::Milliseconds(query.lease_ms), kLeaseMax));
  }
  return hit;
}

void RecordIndex::Touch(Node* node, uint64_t tick) {
  order_.erase(node);
  node->record.tick = tick;
  order_.insert(node);
  touched_.insert(node);
}

void RecordIndex::AddRun(const Digest& last, uint64_t tick) {
  auto run = std::find_if(runs_.begin(), runs_.end(),
                          [&](const Run& run) { return run.last == last; });
  if (run != runs_.end()) runs_.erase(run);
  runs_.push_front({last, tick});
  if (runs_.size() > kRunsMax) runs_.pop_back();
}

bool RecordIndex::Erase(const RecordId& id) {
  Node* node = FindNode(id);
  if (node == nullptr) return false;
  order_.erase(node);
  touched_.erase(node);
  bytes_ -= node->record.entry.frame_bytes;
  auto found = by_key_.find(id.key);
  auto& nodes = found->second;
  nodes.erase(std::find_if(nodes.begin(), nodes.end(), [&](const auto& each) {
    return each.get() == node;
  }));
  if (nodes.empty()) by_key_.erase(found);
  return true;
}

std::optional<std::vector<IndexedRecord>> RecordIndex::Victims(uint64_t bytes,
                                                               absl::Time now) {
  EndLeases(now);
  std::vector<IndexedRecord> victims;
  uint64_t freed = 0;
  for (auto node = order_.begin(); freed < bytes && node != order_.end();
       ++node) {
    if ((*node)->leases > 0) continue;
    freed += (*node)->record.entry.frame_bytes;
    victims.push_back((*node)->record);
  }
  if (freed < bytes) return std::nullopt;
  return victims;
}

uint64_t RecordIndex::AddLease(const std::vector<RecordEntry>& records,
                               absl::Time end) {
  Lease lease{end, {}};
  for (const RecordEntry& entry : records) {
    Node* node = FindNode(entry.id);
    ++node->leases;
    lease.records.emplace_back(entry.id, node->record.sequence);
  }
  leased_records_ += records.size();
  const uint64_t id = next_lease_++;
  lease_ends_.emplace(end, id);
  leases_.emplace(id, std::move(lease));
  return id;
}

void RecordIndex::ReleaseLease(uint64_t lease_id) {
  auto found = leases_.find(lease_id);
  if (found == leases_.end()) return;
  for (const auto& [id, sequence] : found->second.records) {
    Node* node = FindNode(id);
    if (node != nullptr && node->record.sequence == sequence) --node->leases;
  }
  leased_records_ -= found->second.records.size();
  lease_ends_.erase({found->second.end, lease_id});
  leases_.erase(found);
}

void RecordIndex::EndLeases(absl::Time now) {
  while (!lease_ends_.empty() && lease_ends_.begin()->first <= now)
    ReleaseLease(lease_ends_.begin()->second);
}

std::vector<IndexedRecord> RecordIndex::TakeTouched(size_t limit) {
  std::vector<IndexedRecord> records;
  while (records.size() < limit && !touched_.empty()) {
    auto node = touched_.begin();
    records.push_back((*node)->record);
    touched_.erase(node);
  }
  return records;
}

std::vector<RecordId> RecordIndex::Ids() const {
  std::vector<RecordId> ids;
  ids.reserve(order_.size());
  for (const Node* node : order_) ids.push_back(node->record.entry.id);
  return ids;
}

}  // namespace latentkv
