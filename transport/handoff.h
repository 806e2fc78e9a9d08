// Handing frames from a prefill node to a decode node: what both ends speak of.
// A frame is opaque bytes here; whoever decodes it verifies its checksums.
#ifndef LATENTKV_TRANSPORT_HANDOFF_H_
#define LATENTKV_TRANSPORT_HANDOFF_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "core/limits.h"

namespace latentkv {

// As a session's name.
inline constexpr size_t kTransferNameBytesMax = 256;
inline constexpr uint64_t kTransferFramesMax = kChainBlocksMax;  // One chain.
// Lengths in one announcement: 64 MiB of the smallest frames in use.
inline constexpr size_t kBatchFramesMax = 1024;
// How long one batch may take over a communicator before gRPC takes over: 64
// MiB at 32 MB/s, slower than any network.
inline constexpr absl::Duration kBatchPatience = absl::Seconds(2);

struct HandoffFrame {
  const uint8_t* data = nullptr;  // In device memory if so said. [bytes]
  size_t bytes = 0;               // 1 to kFrameBytesMax.
  bool on_device = false;
  // Keeps data. gRPC may let go of it only after the transfer is over.
  std::shared_ptr<const void> owner;
};

// One end of a channel between the memories of two devices, such as a
// communicator of two ranks. What it was asked to move when an error came is
// lost, and the link of no more use. One thread at a time, but Abort is for
// any.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;

  // The meeting that it was made by: the same at both ends. 0 once it failed.
  // Any thread.
  virtual uint64_t generation() const = 0;
  // The same for ever. Any thread.
  virtual size_t batch_bytes_max() const = 0;

  // Moves frames (batch_bytes_max together at most, in either memory) to the
  // other end, which receives as many bytes. OK does not say that they arrived.
  // DeadlineExceeded, Unavailable (the other end died), Cancelled (Abort).
  virtual absl::Status Send(absl::Span<const HandoffFrame> frames,
                            absl::Time deadline) = 0;
  // Frames of these lengths, in device memory, until the next call. Errors as
  // of Send.
  virtual absl::StatusOr<std::vector<HandoffFrame>> Receive(
      absl::Span<const uint64_t> frame_bytes, absl::Time deadline) = 0;
  // Copies a frame in device memory to `out` [frame.bytes], also when the link
  // has failed.
  virtual absl::Status CopyToHost(const HandoffFrame& frame, uint8_t* out) = 0;
  // Ends the call that runs, and the link. Any thread.
  virtual void Abort() = 0;
};

// Where the receiver puts frames.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  // Frames come once each, in order. `frame` is valid during the call (on the
  // device if it came over the link). An error ends the transfer, and is what
  // the sender is told. One thread at a time.
  virtual absl::Status Take(uint64_t index, const HandoffFrame& frame) = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_HANDOFF_H_
