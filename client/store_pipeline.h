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
#include "client/failure_log.h"
#include "client/frame_sender.h"
#include "client/raw_buffers.h"
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
  std::shared_ptr<const PagedCache> pages;
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

  // Pages are not read any more when it returns.
  std::unique_ptr<Job> Store(StoreRequest request);
  // False if something is still under way at `deadline`.
  bool Flush(absl::Time deadline) const { return ledger_.Flush(deadline); }

 private:
  const Parts parts_;
  const uint64_t raw_bytes_;  // Of a block.
  RawBuffers buffers_;
  StagingBudget budget_;
  StoreLedger ledger_;
  FrameSender sender_;
  EncodeWorkers encoders_;  // Before the sender, which it hands its frames to, is destroyed.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STORE_PIPELINE_H_
