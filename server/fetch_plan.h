// The records of one Fetch, read from the store and held within a bound.
#ifndef LATENTKV_SERVER_FETCH_PLAN_H_
#define LATENTKV_SERVER_FETCH_PLAN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/frame.h"
#include "storage/block_store.h"

namespace latentkv {

// One thread.
class FetchPlan {
 public:
  // Keeps frames of at most `held_bytes_max` between sections; those beyond are read again for each section.
  FetchPlan(BlockStore* store, std::vector<RecordId> ids, uint64_t held_bytes_max);

  size_t size() const { return items_.size(); }
  // Sections of record `index`, known once its section 0 was read; 1 before, 0 when it is gone.
  uint32_t section_count(size_t index) const { return items_[index].section_count; }
  uint32_t MostSections() const;

  struct Section {
    std::shared_ptr<const Bytes> frame;  // Keeps the spans alive.
    ByteSpan header;                     // Of section 0 alone.
    ByteSpan payload;
  };
  // NotFound and DataLoss mean that the record is gone, from now on.
  absl::StatusOr<Section> Read(size_t index, uint32_t section);

 private:
  struct Item {
    RecordId id;
    uint32_t section_count = 1;
    std::shared_ptr<const Bytes> held;
  };
  BlockStore* store_;
  std::vector<Item> items_;
  uint64_t held_bytes_left_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_FETCH_PLAN_H_
