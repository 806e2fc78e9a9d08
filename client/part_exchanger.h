// The thread on which the ranks of an engine make whole blocks of the heads
// that each of them gathered.
#ifndef LATENTKV_CLIENT_PART_EXCHANGER_H_
#define LATENTKV_CLIENT_PART_EXCHANGER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/blocking_queue.h"
#include "client/failure_log.h"
#include "client/head_share.h"
#include "client/raw_buffers.h"
#include "client/staged_block.h"
#include "client/store_ledger.h"
#include "client/store_progress.h"
#include "transport/rank_exchange.h"

namespace latentkv {

// One store of a rank.
struct StagedParts {
  // Its parts may not be complete before `complete`.
  RankBatch batch;
  std::vector<StagingBudget::Share> shares;
  DeviceEventPtr complete;  // Null: they are.
  // Of all blocks of the store, also those without a part.
  std::vector<Digest> keys;
  // Of those with a part, this rank's: admitted, without a raw block.
  std::vector<StagedBlock> own;
  std::shared_ptr<StoreProgress> progress;
  uint64_t sequence = 0;  // StoreLedger::Begin.
};

class PartExchanger {
 public:
  // Hands blocks that became whole to `next`, in the order of Push. All outlive
  // the exchanger.
  PartExchanger(RankExchange* ranks, const HeadShare* share,
                StoreLedger* ledger, FailureLog* log,
                std::function<void(StagedBlock)> next);
  // Closes the exchange and gives up what is under way.
  ~PartExchanger();

  void Push(StagedParts parts) {
    ++waiting_;
    queue_.Push(std::move(parts));
  }
  // Whether so much waits for the other ranks that a store without a part is
  // not worth telling them: it holds no share of a budget. An engine that
  // stores every 100 ms is six seconds ahead of them then.
  bool full() const { return waiting_ >= kWaitingMax; }

 private:
  static constexpr uint32_t kWaitingMax = 64;
  void Work();
  void Exchange(StagedParts* parts);
  absl::StatusOr<RankAgreement> MakeWhole(StagedParts* parts);
  void SayHowPartsGo();

  RankExchange* const ranks_;
  const HeadShare& share_;
  StoreLedger* const ledger_;
  FailureLog* const log_;
  const std::function<void(StagedBlock)> next_;
  const std::shared_ptr<RawBuffers> buffers_;  // Of whole blocks.
  const uint64_t raw_bytes_;
  absl::Status link_status_;  // As it was said last.
  std::atomic<uint32_t> waiting_{0};
  BlockingQueue<StagedParts> queue_;
  std::thread thread_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_PART_EXCHANGER_H_
