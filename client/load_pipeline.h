// Loads: looks the blocks up, receives their sections in one stream, decodes
// them into pages on a pool.
#ifndef LATENTKV_CLIENT_LOAD_PIPELINE_H_
#define LATENTKV_CLIENT_LOAD_PIPELINE_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/counters.h"
#include "client/engine_pages.h"
#include "client/failure_log.h"
#include "client/restored_losses.h"
#include "client/worker_pool.h"
#include "codec/codec.h"
#include "core/digest.h"
#include "kernels/pages.h"
#include "transport/cache_channel.h"

namespace latentkv {

// Which encodings a reader takes.
struct ReadPolicy {
  std::vector<Digest> bases;  // Besides exact; empty for exact alone.
  float loss_chain_max = 0;
};

struct LoadRequest {
  std::vector<Digest> keys;  // Of the blocks to load, in chain order.
  // Of the whole chain up to the last block to load.
  std::vector<uint32_t> tokens;
  uint64_t first_token = 0;
  std::shared_ptr<EnginePages> pages;
  DeviceEventPtr pages_used;                 // EnginePages::UsedUntil.
  std::vector<std::vector<TokenRun>> slots;  // Where each block goes; checked.
  absl::Time deadline;
};

class LoadTask;

// Thread-safe.
class LoadPipeline {
 public:
  struct Parts {  // All outlive the pipeline.
    CacheChannel* channel = nullptr;
    const Codec* codec = nullptr;
    WorkerPool* pool = nullptr;
    RestoredLosses* losses = nullptr;
    ClientCounters* counters = nullptr;
    FailureLog* log = nullptr;
    ReadPolicy policy;
  };
  explicit LoadPipeline(Parts parts) : parts_(std::move(parts)) {}
  // Ends the loads that run. Their jobs stay valid.
  ~LoadPipeline();

  // ResourceExhausted if no thread can be had.
  absl::StatusOr<std::unique_ptr<Job>> Start(LoadRequest request);

 private:
  friend class LoadTask;
  void Ended(LoadTask* task);

  const Parts parts_;
  std::mutex mutex_;
  std::condition_variable ended_;
  absl::flat_hash_set<LoadTask*> running_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_LOAD_PIPELINE_H_
