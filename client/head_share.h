// The part of every block that this client's pages hold: all KV heads, or those
// of one rank of its engine.
#ifndef LATENTKV_CLIENT_HEAD_SHARE_H_
#define LATENTKV_CLIENT_HEAD_SHARE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/geometry.h"
#include "core/limits.h"
#include "kernels/heads.h"
#include "kernels/pages.h"

namespace latentkv {

// Thread-safe: nothing changes.
class HeadShare {
 public:
  // HeadsOfRank's error.
  static absl::StatusOr<HeadShare> Create(Geometry model, uint32_t rank,
                                          uint32_t ranks) {
    HeadShare share;
    for (uint32_t other = 0; other < ranks; ++other) {
      absl::StatusOr<std::vector<HeadRange>> heads =
          HeadsOfRank(model, other, ranks);
      if (!heads.ok()) return heads.status();
      share.heads_.push_back(*std::move(heads));
    }
    if (rank >= ranks) return HeadsOfRank(model, rank, ranks).status();
    share.rank_ = rank;
    share.held_ = WithHeads(model, share.heads_[rank]);
    share.model_ = std::move(model);
    return share;
  }

  const Geometry& model() const { return model_; }
  const Geometry& held() const { return held_; }  // Of the pages.
  uint32_t rank() const { return rank_; }
  uint32_t ranks() const { return heads_.size(); }
  bool whole() const { return ranks() == 1; }
  absl::Span<const HeadRange> heads_of(uint32_t rank) const {
    return heads_[rank];
  }

  // Has `restore` write the raw form of layers [first_layer, last_layer) of a
  // block of the model; leaves that of the pages in `raw`.
  absl::Status Restore(
      uint32_t first_layer, uint32_t last_layer, absl::Span<uint8_t> raw,
      absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) const {
    if (whole()) return restore(raw);
    const uint64_t bytes =
        RawBytes(model_, first_layer, last_layer, kBlockTokens);
    const auto memory = std::make_unique_for_overwrite<uint8_t[]>(bytes);
    absl::Status status = restore({memory.get(), bytes});
    if (status.ok()) {
      TakeHeads(model_, heads_[rank_], first_layer, last_layer, kBlockTokens,
                {memory.get(), bytes}, raw);
    }
    return status;
  }

 private:
  HeadShare() = default;

  Geometry model_, held_;
  uint32_t rank_ = 0;
  std::vector<std::vector<HeadRange>> heads_;  // [ranks][layers]
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_HEAD_SHARE_H_
