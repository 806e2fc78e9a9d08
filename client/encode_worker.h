// The thread that makes frames of staged blocks.
#ifndef LATENTKV_CLIENT_ENCODE_WORKER_H_
#define LATENTKV_CLIENT_ENCODE_WORKER_H_

#include <atomic>
#include <functional>
#include <thread>

#include "client/blocking_queue.h"
#include "client/staged_block.h"
#include "client/store_ledger.h"
#include "codec/codec.h"

namespace latentkv {

class EncodeWorker {
 public:
  // Encodes with `options`, but for the loss inherited, and hands frames to `next` in the order of Push. All outlive
  // the worker.
  EncodeWorker(const Codec* codec, const EncodeOptions& options, StoreLedger* ledger,
               std::function<void(StagedBlock)> next);
  // Gives up what is not encoded yet.
  ~EncodeWorker();

  void Push(StagedBlock block) { queue_.Push(std::move(block)); }

 private:
  void Work();
  absl::Status Encode(StagedBlock* block) const;

  const Codec* const codec_;
  const EncodeOptions options_;
  StoreLedger* const ledger_;
  const std::function<void(StagedBlock)> next_;
  BlockingQueue<StagedBlock> queue_;
  std::atomic<bool> closing_{false};
  std::thread thread_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_ENCODE_WORKER_H_
