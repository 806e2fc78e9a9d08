#include "server/fetch_plan.h"

#include <algorithm>

namespace latentkv {

FetchPlan::FetchPlan(BlockStore* store, std::vector<RecordId> ids, uint64_t held_bytes_max)
    : store_(store), held_bytes_left_(held_bytes_max) {
  items_.reserve(ids.size());
  for (RecordId& id : ids) items_.push_back({id, 1, nullptr});
}

uint32_t FetchPlan::MostSections() const {
  uint32_t most = 0;
  for (const Item& item : items_) most = std::max(most, item.section_count);
  return most;
}

absl::StatusOr<FetchPlan::Section> FetchPlan::Read(size_t index, uint32_t section) {
  Item& item = items_[index];
  Section read;
  read.frame = item.held;
  if (read.frame == nullptr) {
    absl::StatusOr<std::shared_ptr<const Bytes>> frame = store_->Get(item.id);
    if (!frame.ok()) {
      if (absl::IsNotFound(frame.status()) || absl::IsDataLoss(frame.status())) item.section_count = 0;
      return frame.status();
    }
    read.frame = *std::move(frame);
  }
  const ByteSpan bytes(read.frame->data(), read.frame->size());
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(bytes, bytes.size());
  if (!header.ok() || section >= header->sections.size()) {
    item.section_count = 0;
    return absl::DataLossError("stored frame without the section");
  }
  const FrameSection& place = header->sections[section];
  if (section == 0) read.header = bytes.subspan(0, place.offset);
  read.payload = bytes.subspan(place.offset, place.bytes);
  item.section_count = header->sections.size();
  if (section + 1 == item.section_count) {
    if (item.held != nullptr) held_bytes_left_ += bytes.size();
    item.held = nullptr;
  } else if (item.held == nullptr && bytes.size() <= held_bytes_left_) {
    held_bytes_left_ -= bytes.size();
    item.held = read.frame;
  }
  return read;
}

}  // namespace latentkv
