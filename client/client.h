// The client library: finds a prompt's stored prefix, fills pages with it,
// stores pages. For engines in C++; other languages use c/latentkv.h, which
// says the same.
#ifndef LATENTKV_CLIENT_CLIENT_H_
#define LATENTKV_CLIENT_CLIENT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/chain_key.h"
#include "core/geometry.h"
#include "kernels/pages.h"

namespace latentkv {

// A rank of an engine whose KV heads are split over several (kernels/heads.h:
// each has as many, in the order of ranks; of a layer with fewer heads than
// ranks some hold the same one). Its pages hold its heads alone; the geometry,
// and what is stored, are the whole model's, whoever wrote it. Ranks Store the
// same blocks in the same order: each then encodes and sends its share of them.
// They load each for itself.
struct TensorParallel {
  uint32_t rank = 0, ranks = 1;
  // Path of sockets that ranks meet at, "<meeting>.<rank>", in a folder that
  // nobody else may write to: the same for all ranks, and of this engine alone.
  // Not needed by a single rank.
  std::string meeting;
};

struct ClientOptions {
  std::string address;  // "127.0.0.1:7430" or "unix:/path"
  ChainScope scope;
  Geometry geometry;
  // Empty: exact or uncalibrated.
  std::string basis_path;
  // "uncalibrated" needs no basis; "high", "balanced", "small" do.
  std::string profile = "exact";
  // Above 0: instead of the profile's.
  float step = 0;
  // What a reader accepts; 0: four times the profile's bound.
  float loss_chain_max = 0;
  // Of what waits to be sent: 11,000 tokens of SmolLM2.
  uint64_t staging_bytes_max = uint64_t{256} << 20;
  // That decode; 0 for the machine's cores, 4 at most.
  uint32_t thread_count = 0;
  TensorParallel tensor_parallel;
};

// Need only live during the call that it is given to.
struct Prompt {
  absl::Span<const uint32_t> tokens = {};
  absl::Span<const BlockExtra> extras = {};  // Sorted by block.
  std::optional<std::string> salt = {};      // Instead of the client's.
};

struct TransferResult {
  // Good tokens from the first on: loaded, or acknowledged.
  uint64_t token_count = 0;
  uint64_t frame_bytes = 0;   // Of those.
  uint64_t exact_blocks = 0;  // Of those, how many were exact.
  double loss_chain = 0;      // Of the last good block.
  // Of a store by one rank of several: token_count ends at the first block that
  // this rank knows to be lost; the rest is about the blocks among them that it
  // sent itself. What an engine may count on is the least of its ranks' counts,
  // of stores as of loads.
};

// A load or a store under way. One thread waits at a time.
class Job {
 public:
  // Ends a load that still runs: no page is written any more when it returns. A
  // store goes on.
  virtual ~Job() = default;
  // Waits until layer `layer` of a load is in its pages for all good tokens,
  // or, if it is negative, until the job is over (a store knows nothing else).
  // On a device, what any stream is given afterwards may read those pages.
  // Whatever went wrong shows as a smaller token_count. DeadlineExceeded after
  // `timeout`, and the job goes on; InvalidArgument for a layer that the
  // geometry does not have.
  virtual absl::StatusOr<TransferResult> Wait(int32_t layer,
                                              absl::Duration timeout) = 0;
};

// Since the client was opened. Of blocks that ranks store, each counts its own.
struct ClientStats {
  uint64_t lookups = 0, hit_tokens = 0;  // Of Match.
  uint64_t loaded_tokens = 0, loaded_bytes = 0;
  // Blocks that a load was asked for and did not restore, whatever the reason.
  uint64_t load_failures = 0;
  // Acknowledged.
  uint64_t stored_blocks = 0, stored_bytes = 0, stored_raw_bytes = 0;
  // Not sent: the queue was full, the daemon away, or a block before was not
  // stored.
  uint64_t dropped_blocks = 0;
  // Could not be encoded, or were not acknowledged.
  uint64_t store_failures = 0;
  // Of the stored ones: by the device that their pages lay on.
  uint64_t device_encoded_blocks = 0;
  bool breaker_open = false;  // The daemon counts as away.
  // Of the stored ones: at a finer step than asked for, without the basis or
  // exact, since they were over the profile's bound of loss or had values that
  // it does not hold. Many are a sign of text that the basis was not calibrated
  // on.
  uint64_t guarded_blocks = 0;
};

// Thread-safe; throws nothing. A daemon that is away is a miss: it fails fast
// after the first call that found out, and is tried again after a while.
class Client {
 public:
  // Never connects. InvalidArgument for options that cannot be, NotFound or
  // DataLoss for the basis file.
  static absl::StatusOr<std::unique_ptr<Client>> Open(
      const ClientOptions& options);

  // Ends loads that still run and gives up stores that were not sent; their
  // jobs stay valid.
  virtual ~Client() = default;

  // Before Load and Store, which take the pages that were registered last. They
  // may lie in host memory, or all in that of one device; the client finds out.
  // They must outlive the client or, when others were registered in their
  // place, the loads that were begun with them and what was queued on the
  // streams of stores. The first pages on a device take staging_bytes_max of
  // pinned memory, and 64 MiB of the device's with a block for each thread;
  // with a basis also what restoring in it takes (of an 8B model some .6 GB of
  // the device's and 64 MiB of pinned memory), and seconds later what encoding
  // in it does (1.1 GB and 128 MiB) if that is at most half of what is free.
  // InvalidArgument if they do not fit the geometry or lie in several memories;
  // ResourceExhausted.
  virtual absl::Status RegisterPages(PagedCache pages) = 0;

  // Tokens of the longest stored prefix, a multiple of kBlockTokens, which the
  // daemon then keeps for `lease`. 0 when nothing is stored, or the daemon is
  // away or has not answered by `deadline`.
  virtual absl::StatusOr<uint64_t> Match(const Prompt& prompt,
                                         absl::Duration lease,
                                         absl::Time deadline) = 0;

  // Begins to fill tokens [first, first + count), multiples of kBlockTokens, of
  // the prompt, whose pages are `page_ids` (of the whole prompt, one for each
  // page_tokens). At `deadline` the job ends with what is good. Pages on a
  // device are written behind what is queued in `stream` now.
  virtual absl::StatusOr<std::unique_ptr<Job>> Load(
      const Prompt& prompt, uint64_t first, uint64_t count,
      absl::Span<const uint64_t> page_ids, absl::Time deadline,
      EngineStream stream) = 0;
  absl::StatusOr<std::unique_ptr<Job>> Load(const Prompt& prompt,
                                            uint64_t first, uint64_t count,
                                            absl::Span<const uint64_t> page_ids,
                                            absl::Time deadline) {
    return Load(prompt, first, count, page_ids, deadline, nullptr);
  }

  // Begins to store the whole blocks of [first, first + count): copies their
  // pages before it returns, then encodes and sends. What the queue has no room
  // for is dropped, and so is all behind it, which nobody could reach. Of pages
  // on a device it takes what `stream` will have written by what is queued in
  // it now, and makes what is queued in it later wait until it has; it does not
  // wait itself. A rank of several that lacks what the others store, such as a
  // load that failed there alone, gives no page ids: then none of them stores
  // it, and none waits for it.
  virtual absl::StatusOr<std::unique_ptr<Job>> Store(
      const Prompt& prompt, uint64_t first, uint64_t count,
      absl::Span<const uint64_t> page_ids, EngineStream stream) = 0;
  absl::StatusOr<std::unique_ptr<Job>> Store(
      const Prompt& prompt, uint64_t first, uint64_t count,
      absl::Span<const uint64_t> page_ids) {
    return Store(prompt, first, count, page_ids, nullptr);
  }

  // Waits until every store so far was acknowledged or given up, and, of one
  // rank of several, the others have what is theirs. DeadlineExceeded.
  virtual absl::Status Flush(absl::Duration timeout) = 0;

  virtual ClientStats Stats() const = 0;

  // A named record of the caller's bytes that survives restarts. Unavailable
  // while the daemon is away.
  virtual absl::Status PutSession(absl::string_view name, ByteSpan record,
                                  absl::Time deadline) = 0;
  virtual absl::StatusOr<std::string> GetSession(absl::string_view name,
                                                 absl::Time deadline) = 0;
  virtual absl::Status DeleteSession(absl::string_view name,
                                     absl::Time deadline) = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_CLIENT_H_
