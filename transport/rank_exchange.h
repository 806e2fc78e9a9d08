// Ranks of a tensor-parallel engine, each with its heads of the same blocks,
// make whole blocks of them: every block at the rank that it belongs to. Parts
// are opaque bytes here.
#ifndef LATENTKV_TRANSPORT_RANK_EXCHANGE_H_
#define LATENTKV_TRANSPORT_RANK_EXCHANGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "transport/meeting_place.h"

namespace latentkv {

struct RankPart {
  ByteSpan bytes;
  // Keeps them, maybe beyond the call: gRPC lets go of them when it likes.
  std::shared_ptr<const void> owner;
};

// Blocks that every rank stores at once. Block i belongs to rank (first_owner +
// i) % ranks.
struct RankBatch {
  // The same on every rank, of these blocks alone; again if they are exchanged
  // again.
  Digest id;
  // When the engine stored them, which ranks do at about the same time.
  absl::Time stored;
  uint32_t first_owner = 0;
  // What this rank has of them, from the first on: fewer if it had no room.
  std::vector<RankPart> parts;
  uint64_t part_bytes = 0;         // Of each, on every rank.
  float loss_inherited = 0;        // As this rank knows it.
  std::optional<uint32_t> device;  // That the engine works on.
};

struct RankAgreement {
  // Complete: from the first on, those that every rank has.
  uint32_t blocks = 0;
  float loss_inherited = 0;  // The largest of all ranks.
};

// Takes what rank `from` has of a block of ours. One call at a time, on any
// thread; `part` is valid during the call.
using TakePart =
    std::function<void(uint32_t block, uint32_t from, ByteSpan part)>;

// One thread at a time, but Close is for any.
class RankExchange {
 public:
  virtual ~RankExchange() = default;
  virtual uint32_t rank() const = 0;
  virtual uint32_t ranks() const = 0;

  // Returns when the agreed blocks of this rank are complete; `take` had their
  // parts, its own among them, and maybe some of blocks that are not, and is
  // not called any more. All ranks call it with the same batches in the same
  // order. An error, in bounded time whatever became of a rank, says which and
  // means that none is complete: Unavailable, DeadlineExceeded, Cancelled
  // (Close); the next batch may do.
  virtual absl::StatusOr<RankAgreement> Exchange(const RankBatch& batch,
                                                 const TakePart& take) = 0;

  // Batches whose parts went from device to device. Any thread.
  virtual uint64_t batches_over_link() const = 0;
  // Why they do not; OK if they do, or there was no reason to try. Of the
  // thread that exchanges.
  virtual absl::Status link_status() const = 0;

  // Ends the call that runs, at once or, while a link is made or used, by its
  // deadline; and all later ones.
  virtual void Close() = 0;
};

// A way for parts between the memories of the ranks' devices. One thread at a
// time. After an error it is of no more use.
class RankLink {
 public:
  virtual ~RankLink() = default;
  // The meeting that it was made by: the same on all ranks.
  virtual uint64_t generation() const = 0;
  // What one rank sends to another at once, at most.
  virtual uint64_t bytes_max() const = 0;
  // [ranks]: sends `to[r]`, one behind the other, to rank r, and receives
  // `from_bytes[r]` of it, which must be what it sends; then calls `take` with
  // what came. Nothing is sent to, or comes from, this rank. All ranks call it
  // at once. DeadlineExceeded, Unavailable, Internal; memory of `to` that a
  // device may still read then is kept by its owners.
  virtual absl::Status Exchange(
      absl::Span<const std::vector<RankPart>> to,
      absl::Span<const uint64_t> from_bytes,
      const std::function<void(uint32_t from, ByteSpan bytes)>& take,
      absl::Time deadline) = 0;
};

// Meets the other ranks, with the id if this is rank 0.
using RankJoin = std::function<absl::StatusOr<Meeting>(ByteSpan id)>;
// Makes a link of all ranks on `device`; all of them do at once.
// FailedPrecondition where there cannot be one.
using RankLinkFactory = std::function<absl::StatusOr<std::unique_ptr<RankLink>>(
    uint32_t device, const GroupPlace& place, const RankJoin& join,
    absl::Time deadline)>;

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RANK_EXCHANGE_H_
