// Every block that was given to be stored, until it was acknowledged or given
// up, and the chains that have a hole.
#ifndef LATENTKV_CLIENT_STORE_LEDGER_H_
#define LATENTKV_CLIENT_STORE_LEDGER_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/counters.h"
#include "client/failure_log.h"
#include "client/recent_keys.h"
#include "client/staged_block.h"
#include "core/clock.h"
#include "core/digest.h"

namespace latentkv {

// Thread-safe.
class StoreLedger {
 public:
  // Lost blocks that are remembered: two of the longest chains.
  static constexpr size_t kLostBlocksMax = 1u << 16;

  // All outlive it.
  StoreLedger(ClientCounters* counters, FailureLog* log, const Clock* clock)
      : counters_(counters), log_(log), clock_(clock) {}

  // Whether the block `key` was lost lately, so that nobody can reach what is
  // behind it. A zero key never was.
  bool Lost(const Digest& key) const;

  // Work without a block of its own, which Flush waits for as for blocks, until
  // it is ended by its sequence.
  uint64_t Begin();
  void End(uint64_t sequence);

  // Takes the block in and gives it its sequence. Then one of the three below
  // ends its way.
  void Admit(StagedBlock* block);
  void Stored(const StagedBlock& block);
  // It could not be encoded, or was not acknowledged.
  void Failed(const StagedBlock& block, const absl::Status& status);
  // A block before it was lost.
  void Unreachable(const StagedBlock& block);

  // A block that was not even admitted.
  void Dropped(const Digest& key);

  // What became of a block that another rank stores, as far as this one knows.
  void StoredElsewhere(const Digest& key);
  void LostElsewhere(const Digest& key);

  // Waits until every block admitted so far has ended its way; false at
  // `deadline`.
  bool Flush(absl::Time deadline) const;

 private:
  void EndLocked(const StagedBlock& block, bool lost);
  void EndLocked(uint64_t sequence);

  ClientCounters* const counters_;
  FailureLog* const log_;
  const Clock* const clock_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  uint64_t last_sequence_ = 0;
  std::set<uint64_t> under_way_;
  RecentKeys<absl::Time> lost_{kLostBlocksMax};  // With the time of the loss.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STORE_LEDGER_H_
