// The threads that make frames of staged blocks.
#ifndef LATENTKV_CLIENT_ENCODE_WORKERS_H_
#define LATENTKV_CLIENT_ENCODE_WORKERS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "client/blocking_queue.h"
#include "client/device_encoder.h"
#include "client/staged_block.h"
#include "client/store_ledger.h"
#include "codec/codec.h"

namespace latentkv {

class EncodeWorkers {
 public:
  // Encodes with `options`, but for the loss inherited, and hands frames to
  // `next` in the order of Push, one at a time. All outlive the workers.
  EncodeWorkers(const Codec* codec, const EncodeOptions& options,
                StoreLedger* ledger, uint32_t thread_count,
                std::function<void(StagedBlock)> next);
  // Gives up what is not encoded yet.
  ~EncodeWorkers();

  void Push(StagedBlock block) { queue_.Push(std::move(block)); }

 private:
  struct Outcome {
    StagedBlock block;
    absl::Status status;
  };
  struct Taken {
    uint64_t place = 0;
    StagedBlock block;
    absl::Status status;
    bool wanted = false;  // Nothing before it was lost.
  };
  void Work();
  void Close();
  // The next block, or nothing behind the last.
  std::optional<Taken> Take();
  // More for `encoder`, as far as there are, up to `count`.
  void TakeMore(const DeviceEncoder* encoder, size_t count,
                std::vector<Taken>* batch);
  // Whether it is to be encoded, when its raw form is complete.
  void Prepare(Taken* taken) const;
  void EncodeOnDevice(DeviceEncoder::Turn* turn,
                      absl::Span<Taken* const> batch) const;
  absl::Status Encode(StagedBlock* block) const;
  absl::Status Keep(absl::StatusOr<Bytes> frame, StagedBlock* block) const;
  // Hands on what is finished and has nothing unfinished before it.
  void Finish(uint64_t place, Outcome outcome);

  const Codec* const codec_;
  const EncodeOptions options_;
  StoreLedger* const ledger_;
  const std::function<void(StagedBlock)> next_;
  BlockingQueue<StagedBlock> queue_;
  std::atomic<bool> closing_{false};
  // So that places are given in the order of the queue.
  std::mutex take_mutex_;
  uint64_t places_ = 0;  // Under take_mutex_: given so far.
  std::mutex finish_mutex_;
  // By place; under finish_mutex_, as is the next.
  std::map<uint64_t, Outcome> finished_;
  uint64_t next_place_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_ENCODE_WORKERS_H_
