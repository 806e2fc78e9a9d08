// One batch of a rank exchange, as far as one rank has come with it. No I/O.
#ifndef LATENTKV_TRANSPORT_RANK_ROUND_H_
#define LATENTKV_TRANSPORT_RANK_ROUND_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/rank_exchange.h"

namespace latentkv {

// Thread-safe.
class RankRound {
 public:
  // All are used until Close.
  RankRound(uint32_t rank, uint32_t ranks, const RankBatch& batch,
            const TakePart& take);

  bool Owns(uint32_t block) const { return OwnerOf(block) == rank_; }
  uint32_t OwnerOf(uint32_t block) const {
    return (batch_.first_owner + block) % ranks_;
  }

  // What came.
  void Ready(uint32_t from, const v1::RankReady& ready);
  void Go(const v1::RankGo& go);
  void Stop(absl::string_view why);
  // InvalidArgument for a part that cannot be.
  absl::Status Part(uint32_t from, uint32_t block, ByteSpan bytes);

  // Every rank's, this one's given, by rank. DeadlineExceeded, with those that
  // came in `came`.
  absl::StatusOr<std::vector<v1::RankReady>> AwaitReady(
      const v1::RankReady& own, absl::Time deadline, std::vector<bool>* came);
  absl::StatusOr<v1::RankGo> AwaitGo(absl::Time deadline);
  // Until all parts of this rank's blocks below `blocks` came.
  absl::Status AwaitParts(uint32_t blocks, absl::Time deadline);

  // No part is taken any more when it returns.
  void Close();

 private:
  // Until `done`; DeadlineExceeded says who is missing, by `missing`.
  template <typename Done, typename Missing>
  absl::Status Await(std::unique_lock<std::mutex>* lock, absl::Time deadline,
                     const Done& done, const Missing& missing);
  std::string MissingParts(uint32_t blocks) const;

  const uint32_t rank_, ranks_;
  const RankBatch& batch_;
  const TakePart& take_;
  mutable std::mutex mutex_;  // Of everything below.
  std::condition_variable changed_;
  std::map<uint32_t, v1::RankReady> ready_;
  std::optional<v1::RankGo> go_;
  std::optional<std::string> stopped_;
  std::vector<bool> taken_;  // [blocks][ranks]
  // [blocks] parts that have not come; 0 of blocks of others.
  std::vector<uint32_t> missing_;
  bool closed_ = false;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RANK_ROUND_H_
