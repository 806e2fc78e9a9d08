// A NCCL, and what of CUDA a communicator asks, that fail as they are told.
// Faults: connecting never ends; an operation is never put on the stream, or
// never done, or its peer dies; an abort hangs, having stopped the device or
// not; finalizing never ends. Nothing is moved: nccl_device_test is about that.
#ifndef LATENTKV_TESTS_TRANSPORT_FAKE_NCCL_H_
#define LATENTKV_TESTS_TRANSPORT_FAKE_NCCL_H_

#include <atomic>

namespace latentkv {

struct FakeNccl {
  std::atomic<bool> connect_never_ends = false;
  std::atomic<bool> operation_never_queued = false;
  std::atomic<bool> operation_never_done = false;
  std::atomic<bool> peer_dies = false;
  std::atomic<bool> abort_hangs = false;
  std::atomic<bool> abort_stops_device = true;
  std::atomic<bool> finalize_never_ends = false;

  std::atomic<bool> stream_busy = false;
  std::atomic<int> state = 0;  // ncclResult_t
  std::atomic<int> aborts = 0, finalizes = 0, destroys = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TRANSPORT_FAKE_NCCL_H_
