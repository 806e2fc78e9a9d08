// One load, from its lookup to its last page.
#ifndef LATENTKV_CLIENT_LOAD_TASK_H_
#define LATENTKV_CLIENT_LOAD_TASK_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "client/backlog.h"
#include "client/group_run.h"
#include "client/load_pipeline.h"
#include "client/load_progress.h"
#include "client/section_queue.h"

namespace latentkv {

class LoadTask {
 public:
  // `parts` are used until Run returns, and not after.
  LoadTask(const LoadPipeline::Parts& parts, LoadRequest request);

  // The whole load, on a thread of its own. Throws nothing.
  void Run();
  // Makes Run return soon. Any thread.
  void Cancel() { cancel_.Cancel(); }
  // As Job::Wait. Any thread, also after Run.
  absl::StatusOr<TransferResult> Wait(int32_t layer, absl::Time deadline) const;

 private:
  struct Block {
    RemoteRecord record;
    FrameHeader header;         // Once section 0 came.
    uint32_t next_section = 0;  // Sections come in order.
    // From then until the last section is decoded; not of one in the run.
    std::unique_ptr<BlockReader> reader;
    SectionQueue received;
    // Under run_mutex_ while groups are queued.
    std::optional<uint32_t> place_in_run;
  };
  struct QueuedGroup {
    uint32_t group, wanted;  // Of the run's first `wanted` blocks.
    DeviceEventPtr over;
  };

  absl::Status Receive();
  // Makes a run of blocks that the device restores, from block `first` on, if
  // it can. The block up to which to fetch.
  uint32_t BeginRun(uint32_t first);
  absl::Status Deliver(uint32_t index, const FetchedSection& section);
  // Has the device restore the groups that the run has of all its blocks that
  // are still wanted. Whether there was one.
  bool QueueCompleted();
  // Waits for what is queued, on a thread of the pool, one group after the
  // other.
  void ConcludeQueued();
  // `restored`: GroupLane::Outcome, or the error of the device.
  void Conclude(const QueuedGroup& queued,
                const absl::StatusOr<std::vector<absl::Status>>& restored);
  // Restores what the run has of a block here, as will be what comes of it.
  absl::Status TakeOutOfRun(uint32_t index);
  bool Take(const FetchedSection& section);
  absl::Status Check(const FetchedSection& section);
  absl::Status CheckHeader(uint32_t index, ByteSpan bytes);
  void DecodeReceived(uint32_t index);
  void Decode(uint32_t index, const ReceivedSection& section);
  void Refuse(uint32_t index, const absl::Status& status);
  void ForgetDamaged();
  void Account(uint32_t good);
  TransferResult ResultOf(uint32_t good) const;
  uint32_t FirstTokenOf(uint32_t index) const;

  const LoadPipeline::Parts parts_;
  const LoadRequest request_;
  const uint32_t layers_;
  CancelToken cancel_;
  LoadProgress progress_;
  Backlog backlog_;
  // What is not `received` is written by the receiver before the first section
  // is decoded, then by who decodes.
  std::vector<std::unique_ptr<Block>> blocks_;
  // The run is the receiver's and of who concludes its groups. It comes and
  // goes while none is queued.
  std::mutex run_mutex_;
  std::unique_ptr<GroupRun> run_;
  std::vector<uint32_t> run_blocks_;
  // Under run_mutex_: not concluded, each an item of the backlog.
  std::deque<QueuedGroup> queued_;
  std::mutex mutex_;
  std::vector<Digest> damaged_;  // Under mutex_.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_LOAD_TASK_H_
