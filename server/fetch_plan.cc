#include "server/fetch_plan.h"

#include <algorithm>
#include <utility>

namespace latentkv {

FetchPlan::FetchPlan(BlockStore* store, std::vector<RecordId> ids,
                     ByteBudget* budget)
    : store_(store), budget_(budget) {
  items_.reserve(ids.size());
  for (RecordId& id : ids) items_.push_back({id, 1, {}});
}

FetchPlan::~FetchPlan() {
  for (Item& item : items_) Drop(&item);
}

uint32_t FetchPlan::MostSections() const {
  uint32_t most = 0;
  for (const Item& item : items_) most = std::max(most, item.section_count);
  return most;
}

void FetchPlan::Hold(Item* item, SharedBytes frame) {
  if (item->held.owner == nullptr && budget_->TryTake(frame.bytes.size()))
    item->held = std::move(frame);
}

void FetchPlan::Drop(Item* item) {
  if (item->held.owner != nullptr) budget_->Give(item->held.bytes.size());
  item->held = {};
}

absl::StatusOr<FetchPlan::Section> FetchPlan::Read(size_t index,
                                                   uint32_t section) {
  Item& item = items_[index];
  SharedBytes frame = item.held;
  if (frame.owner == nullptr) {
    absl::StatusOr<SharedBytes> got = store_->Get(item.id);
    if (absl::IsNotFound(got.status()) || absl::IsDataLoss(got.status()))
      item.section_count = 0;
    if (!got.ok()) return got.status();
    frame = *std::move(got);
  }
  absl::StatusOr<FrameHeader> header =
      ParseFrameHeader(frame.bytes, frame.bytes.size());
  if (!header.ok() || section >= header->sections.size()) {
    item.section_count = 0;
    return absl::DataLossError("stored frame without the section");
  }
  const FrameSection& place = header->sections[section];
  Section read;
  if (section == 0) read.header = frame.bytes.subspan(0, place.offset);
  read.payload = frame.bytes.subspan(place.offset, place.bytes);
  read.owner = frame.owner;
  item.section_count = header->sections.size();
  if (section + 1 == item.section_count) {
    Drop(&item);
  } else {
    Hold(&item, std::move(frame));
  }
  return read;
}

}  // namespace latentkv
