// Ranks that move and reduce memory of their devices over NCCL, and never wait
// for each other beyond a deadline.
#ifndef LATENTKV_TRANSPORT_NCCL_COMMUNICATOR_H_
#define LATENTKV_TRANSPORT_NCCL_COMMUNICATOR_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "transport/meeting_place.h"
#include "transport/nccl/nccl_library.h"

namespace latentkv {

// How long after its deadline a call may still take, until NCCL's kernels and
// threads have seen that they were aborted: threads that connect sleep for some
// 100 ms a try, more with each.
inline constexpr absl::Duration kAbortTimeMax = absl::Seconds(2);
// How long a communicator that nothing is wrong with waits for the others when
// it is let go of.
inline constexpr absl::Duration kFinalizeTimeMax = absl::Seconds(2);

// Asks `join` (PeerClient::Join or MeetingPlace::Join) to meet, with the id if
// this is rank 0.
using JoinFunction = std::function<absl::StatusOr<Meeting>(ByteSpan id)>;

// One thread at a time uses it, except for Abort, which any may call.
//
// Operations are put on the caller's stream, one stream at a time, and return
// when they are there; Await returns when they are done. All ranks call the
// same ones in the same order. Errors end the communicator, and every later
// call answers the first: DeadlineExceeded, Unavailable (a peer died or cannot
// be reached), Cancelled (Abort), Internal (CUDA or NCCL, with its text). When
// one is returned, at most kAbortTimeMax after the deadline, the device is done
// with the buffers, unless holds_buffers() says that it is not: then they must
// stay as long as the process.
class Communicator {
 public:
  // Meets the others and connects to them on `device`. FailedPrecondition
  // without NCCL or the device (found out before anybody is met); errors of
  // `join`; and as above.
  static absl::StatusOr<std::unique_ptr<Communicator>> Join(
      const GroupPlace& place, const JoinFunction& join, int device,
      absl::Time deadline);
  // Finalizes or aborts, and leaves behind what does not end in time.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  uint32_t rank() const { return place_.rank; }
  uint32_t ranks() const { return place_.ranks; }
  uint64_t generation() const { return generation_; }
  // OK, or the error that ended it. Any thread.
  absl::Status status() const;
  bool holds_buffers() const { return holds_buffers_; }

  // All memory is on the device. [bytes], [count]
  absl::Status Send(const void* data, size_t bytes, uint32_t peer,
                    cudaStream_t stream, absl::Time deadline);
  absl::Status Receive(void* data, size_t bytes, uint32_t peer,
                       cudaStream_t stream, absl::Time deadline);
  // Sends to and receives from several peers at once; nothing where there are 0
  // bytes.
  struct Piece {
    uint32_t peer = 0;
    const void* send = nullptr;
    size_t send_bytes = 0;
    void* receive = nullptr;
    size_t receive_bytes = 0;
  };
  absl::Status ExchangeAll(absl::Span<const Piece> pieces, cudaStream_t stream,
                           absl::Time deadline);
  absl::Status Broadcast(void* data, size_t bytes, uint32_t root,
                         cudaStream_t stream, absl::Time deadline);
  // In place. Sums of int32 (modulo 2^32) and maxima are the same in whatever
  // order NCCL takes the ranks; sums of float are the same on all ranks, and
  // depend on the order.
  absl::Status AllReduceSum(int32_t* values, size_t count, cudaStream_t stream,
                            absl::Time deadline);
  absl::Status AllReduceSum(float* values, size_t count, cudaStream_t stream,
                            absl::Time deadline);
  absl::Status AllReduceMax(float* values, size_t count, cudaStream_t stream,
                            absl::Time deadline);

  // Returns when everything that was put on the stream is done.
  absl::Status Await(cudaStream_t stream, absl::Time deadline);

  // Ends the call that runs and the communicator, soon after.
  void Abort();

 private:
  struct Ending;

  Communicator(const NcclLibrary* nccl, const GroupPlace& place,
               uint64_t generation, int device)
      : nccl_(nccl), place_(place), generation_(generation), device_(device) {}

  absl::Status Connect(const Bytes& id, absl::Time deadline);
  absl::Status CheckPeer(uint32_t peer) const;
  absl::Status AllReduce(void* values, size_t count, ncclDataType_t type,
                         ncclRedOp_t operation, cudaStream_t stream,
                         absl::Time deadline);
  absl::Status Enqueue(const std::function<ncclResult_t()>& operation,
                       cudaStream_t stream, absl::Time deadline);
  absl::Status Poll(absl::Time deadline,
                    const std::function<absl::StatusOr<bool>()>& done);
  absl::Status ResultStatus(ncclResult_t result, const char* what) const;
  absl::Status End(const absl::Status& status);
  absl::Status EndOn(const absl::Status& status, cudaStream_t stream,
                     bool enqueuing);
  void StartTearDown(bool finalize);
  bool AwaitTornDown(absl::Time deadline);

  const NcclLibrary* const nccl_;
  const GroupPlace place_;
  const uint64_t generation_;
  const int device_;
  ncclComm_t comm_ = nullptr;  // Null again once it is being torn down.
  std::shared_ptr<Ending> ending_;
  absl::Time torn_down_by_;
  bool holds_buffers_ = false;

  mutable std::mutex mutex_;
  absl::Status status_;  // Under mutex_.
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_NCCL_COMMUNICATOR_H_
