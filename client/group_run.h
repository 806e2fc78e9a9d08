// Blocks of a load whose sections the device that holds the pages restores,
// group by group, as they arrive.
#ifndef LATENTKV_CLIENT_GROUP_RUN_H_
#define LATENTKV_CLIENT_GROUP_RUN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/engine_pages.h"
#include "core/frame.h"

namespace latentkv {

// One thread at a time, but for Outcome. What was queued must have passed
// before it is destroyed.
class GroupRun {
 public:
  explicit GroupRun(std::unique_ptr<GroupRestore> restore)
      : restore_(std::move(restore)) {}

  // Whether one more frame of `frame_bytes` bytes with `section_count` sections
  // finds room. If so it is counted.
  bool Reserve(uint64_t frame_bytes, uint32_t section_count);
  // The blocks, of those frames; those of GroupLane::Begin otherwise.
  absl::Status Begin(const PagedCache& pages, std::vector<GroupBlock> blocks,
                     const DeviceEvent* used);

  // Copies the next section of block `block`. DataLoss if it is not as long as
  // `section` says.
  absl::Status Add(uint32_t block, ByteSpan payload,
                   const FrameSection& section, float step);
  // Whether blocks [0, count) that were not dropped, at least one, all have the
  // next group. Then Restore it.
  bool Complete(uint32_t count) const;
  // Queues it for blocks [0, count): GroupLane::Restore. Of others nothing is
  // written. Next comes the group behind it.
  absl::StatusOr<DeviceEventPtr> Restore(uint32_t count);
  std::vector<absl::Status> Outcome(uint32_t group) const {
    return restore_->lane()->Outcome(group);
  }
  uint32_t next_group() const { return next_group_; }

  // Sections of a block so far, and the bytes of one.
  uint32_t SectionsOf(uint32_t block) const { return sections_[block].size(); }
  ByteSpan Payload(uint32_t block, uint32_t section) const;
  // The block is restored elsewhere from now on.
  void Drop(uint32_t block) { dropped_[block] = true; }

 private:
  const std::unique_ptr<GroupRestore> restore_;
  uint64_t reserved_ = 0, used_ = 0;
  uint32_t next_group_ = 0;
  // Of each block, so far; offsets into the whole payload.
  std::vector<std::vector<GroupSection>> sections_;
  std::vector<bool> dropped_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_GROUP_RUN_H_
