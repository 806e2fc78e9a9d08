// Stores: copies pages, then encodes and sends behind the caller's back.
#ifndef LATENTKV_CLIENT_STORE_PIPELINE_H_
#define LATENTKV_CLIENT_STORE_PIPELINE_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "client/circuit_breaker.h"
#include "client/client.h"
#include "client/counters.h"
#include "client/encode_workers.h"
#include "client/engine_pages.h"
#include "client/failure_log.h"
#include "client/frame_sender.h"
#include "client/head_share.h"
#include "client/part_exchanger.h"
#include "client/recent_keys.h"
#include "client/restored_losses.h"
#include "client/staging_budget.h"
#include "client/store_ledger.h"
#include "codec/codec.h"
#include "core/digest.h"
#include "kernels/pages.h"
#include "transport/cache_channel.h"

namespace latentkv {

struct StoreRequest {
  // Of the whole chain up to the last block to store.
  std::vector<Digest> keys;
  std::shared_ptr<const std::vector<uint32_t>> tokens;  // Of as many blocks.
  size_t first_block = 0;                               // The first to store.
  std::shared_ptr<EnginePages> pages;
  EngineStream stream = nullptr;             // That wrote the pages.
  std::vector<std::vector<TokenRun>> slots;  // Of each block to store; checked.
  // There is nothing to store, and the other ranks must not either.
  bool lacks = false;
};

// Thread-safe.
class StorePipeline {
 public:
  struct Parts {  // All outlive the pipeline.
    CacheChannel* channel = nullptr;
    const CircuitBreaker* breaker = nullptr;
    const Codec* codec = nullptr;
    const HeadShare* share = nullptr;
    RankExchange* ranks = nullptr;  // Null unless the share is one of several.
    RestoredLosses* losses = nullptr;
    ClientCounters* counters = nullptr;
    FailureLog* log = nullptr;
    const Clock* clock = nullptr;
    EncodeOptions options;
    uint64_t staging_bytes_max = 0;
    uint32_t thread_count = 1;  // That encode.
  };
  explicit StorePipeline(const Parts& parts);

  // Pages are not read any more when it returns, or not before what is queued
  // in the request's stream later.
  std::unique_ptr<Job> Store(StoreRequest request);
  // False if something is still under way at `deadline`.
  bool Flush(absl::Time deadline) const { return ledger_.Flush(deadline); }

 private:
  // A block with room for what the pages hold of it, whoever stores it.
  struct Room {
    StagingBudget::Share share;
    RawBuffers::Buffer raw;
  };
  bool Owns(size_t block) const {
    return block % parts_.share->ranks() == parts_.share->rank();
  }
  // Whether block `block` of a chain would stand behind a hole, as far as this
  // client knows.
  bool BehindLoss(absl::Span<const Digest> keys, size_t block) const;
  // Room for the first blocks of the request, up to one that has none or is not
  // worth it.
  std::vector<Room> Stage(const StoreRequest& request);
  // Begins to copy pages into `rooms`.
  absl::StatusOr<DeviceEventPtr> Gather(const StoreRequest& request,
                                        absl::Span<const Room> rooms);
  // Block `index` of a request.
  StagedBlock MakeBlock(const StoreRequest& request, uint32_t index,
                        const std::shared_ptr<StoreProgress>& progress);
  void StoreWhole(StoreRequest* request, std::vector<Room> rooms,
                  DeviceEventPtr complete,
                  const std::shared_ptr<StoreProgress>& progress);
  void StoreParts(StoreRequest* request, std::vector<Room> rooms,
                  DeviceEventPtr complete,
                  const std::shared_ptr<StoreProgress>& progress);
  void Drop(const Digest& key, StoreProgress* progress, uint32_t index);

  const Parts parts_;
  // Of a block, and of what the pages hold of it.
  const uint64_t raw_bytes_, part_bytes_;
  StagingBudget budget_;
  StoreLedger ledger_;
  FrameSender sender_;
  // Before the sender, which it hands its frames to, is destroyed.
  EncodeWorkers encoders_;
  // Null: blocks are whole. Before the encoders.
  std::unique_ptr<PartExchanger> exchanger_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STORE_PIPELINE_H_
