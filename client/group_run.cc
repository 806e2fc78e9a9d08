#include "client/group_run.h"

#include <algorithm>
#include <utility>

namespace latentkv {
namespace {

uint64_t Aligned(uint64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment *
         kSectionAlignment;
}

}  // namespace

bool GroupRun::Reserve(uint64_t frame_bytes, uint32_t section_count) {
  // A section's bytes are among its frame's; each may have to be filled up.
  const uint64_t bytes = frame_bytes + section_count * kSectionAlignment;
  if (bytes > restore_->payload().size() - reserved_) return false;
  reserved_ += bytes;
  return true;
}

absl::Status GroupRun::Begin(const PagedCache& pages,
                             std::vector<GroupBlock> blocks,
                             const DeviceEvent* used) {
  sections_.resize(blocks.size());
  dropped_.resize(blocks.size());
  return restore_->lane()->Begin(pages, blocks, used);
}

absl::Status GroupRun::Add(uint32_t block, ByteSpan payload,
                           const FrameSection& section, float step) {
  if (payload.size() != section.bytes ||
      Aligned(section.bytes) > restore_->payload().size() - used_) {
    return absl::DataLossError("a section is not as long as its frame says");
  }
  std::copy(payload.begin(), payload.end(),
            restore_->payload().begin() + used_);
  sections_[block].push_back(
      {used_, static_cast<uint32_t>(section.bytes), section.crc32c, step});
  used_ += Aligned(section.bytes);
  return absl::OkStatus();
}

bool GroupRun::Complete(uint32_t count) const {
  bool any = false;
  // From the last: it is the one that comes last.
  for (uint32_t block = count; block-- > 0;) {
    if (dropped_[block]) continue;
    if (sections_[block].size() <= next_group_) return false;
    any = true;
  }
  return any;
}

absl::StatusOr<DeviceEventPtr> GroupRun::Restore(uint32_t count) {
  const auto given = [&](uint32_t block) {
    return block < count && !dropped_[block] &&
           sections_[block].size() > next_group_;
  };
  uint64_t first = used_, last = 0;
  std::vector<GroupSection> group(sections_.size());
  for (uint32_t block = 0; block < sections_.size(); ++block) {
    if (!given(block)) continue;
    group[block] = sections_[block][next_group_];
    first = std::min(first, group[block].offset);
    last = std::max(last, group[block].offset + Aligned(group[block].bytes));
  }
  for (uint32_t block = 0; block < sections_.size(); ++block) {
    if (given(block)) group[block].offset -= first;
  }
  return restore_->lane()->Restore(
      next_group_++, restore_->payload().data() + first, last - first, group);
}

ByteSpan GroupRun::Payload(uint32_t block, uint32_t section) const {
  const GroupSection& place = sections_[block][section];
  return restore_->payload().subspan(place.offset, place.bytes);
}

}  // namespace latentkv
