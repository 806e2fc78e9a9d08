// The records of one Fetch, read from the store and held within a bound.
#ifndef LATENTKV_SERVER_FETCH_PLAN_H_
#define LATENTKV_SERVER_FETCH_PLAN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "core/frame.h"
#include "server/admission.h"
#include "storage/block_store.h"

namespace latentkv {

// One thread.
class FetchPlan {
 public:
  // Keeps frames between their sections while `budget` has bytes for them;
  // others are read again for each section.
  FetchPlan(BlockStore* store, std::vector<RecordId> ids, ByteBudget* budget);
  ~FetchPlan();
  FetchPlan(const FetchPlan&) = delete;
  FetchPlan& operator=(const FetchPlan&) = delete;

  size_t size() const { return items_.size(); }
  // Sections of record `index`, known once its section 0 was read; 1 before, 0
  // when it is gone.
  uint32_t section_count(size_t index) const {
    return items_[index].section_count;
  }
  uint32_t MostSections() const;

  struct Section {
    ByteSpan header;  // Of section 0 alone.
    ByteSpan payload;
    std::shared_ptr<const void> owner;  // Of both.
  };
  // NotFound and DataLoss mean that the record is gone, from now on.
  absl::StatusOr<Section> Read(size_t index, uint32_t section);

 private:
  struct Item {
    RecordId id;
    uint32_t section_count = 1;
    SharedBytes held;
  };
  void Hold(Item* item, SharedBytes frame);
  void Drop(Item* item);

  BlockStore* store_;
  ByteBudget* budget_;
  std::vector<Item> items_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_FETCH_PLAN_H_
