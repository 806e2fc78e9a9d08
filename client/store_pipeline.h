// Stores: copies pages, then encodes and sends behind the caller's back.
#ifndef LATENTKV_CLIENT_STORE_PIPELINE_H_
#define LATENTKV_CLIENT_STORE_PIPELINE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "client/circuit_breaker.h"
#include "client/client.h"
#include "client/counters.h"
#include "client/encode_workers.h"
#include "client/engine_pages.h"
#include "client/failure_log.h"
#include "client/frame_sender.h"
#include "client/restored_losses.h"
#include "client/staging_budget.h"
#include "client/store_ledger.h"
#include "codec/codec.h"
#include "core/digest.h"
#include "kernels/pages.h"
#include "transport/cache_channel.h"

namespace latentkv {

struct StoreRequest {
  std::vector<Digest> keys;  // Of the whole chain up to the last block to store.
  std::vector<uint32_t> tokens;  // Of as many blocks.
  size_t first_block = 0;    // The first to store.
  std::shared_ptr<EnginePages> pages;
  EngineStream stream = nullptr;  // That wrote the pages.
  std::vector<std::vector<TokenRun>> slots;  // Of each block to store; checked.
};

// Thread-safe.
class StorePipeline {
 public:
  struct Parts {  // All outlive the pipeline.
    CacheChannel* channel = nullptr;
    const CircuitBreaker* breaker = nullptr;
    const Codec* codec = nullptr;
    RestoredLosses* losses = nullptr;
    ClientCounters* counters = nullptr;
    FailureLog* log = nullptr;
    const Clock* clock = nullptr;
    EncodeOptions options;
    uint64_t staging_bytes_max = 0;
    uint32_t thread_count = 1;  // That encode.
  };
  explicit StorePipeline(const Parts& parts);

  // Pages are not read any more when it returns, or not before what is queued in the request's stream later.
  std::unique_ptr<Job> Store(StoreRequest request);
  // False if something is still under way at `deadline`.
  bool Flush(absl::Time deadline) const { return ledger_.Flush(deadline); }

 private:
  // The blocks that are not dropped, with memory for their raw form; those that are lost are settled.
  std::vector<StagedBlock> Stage(StoreRequest* request, const std::shared_ptr<StoreProgress>& progress);
  void Drop(const Digest& key, StoreProgress* progress, uint32_t index);

  const Parts parts_;
  const uint64_t raw_bytes_;  // Of a block.
  StagingBudget budget_;
  StoreLedger ledger_;
  FrameSender sender_;
  EncodeWorkers encoders_;  // Before the sender, which it hands its frames to, is destroyed.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STORE_PIPELINE_H_
