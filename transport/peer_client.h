// The peer service as others see it.
#ifndef LATENTKV_TRANSPORT_PEER_CLIENT_H_
#define LATENTKV_TRANSPORT_PEER_CLIENT_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/cache_channel.h"
#include "transport/handoff.h"
#include "transport/meeting_place.h"

namespace latentkv {

struct HandoffPlan {
  std::string transfer;  // As the receiver calls it.
  // 1 to kTransferFramesMax, in order. Their memory lives until HandOff
  // returns.
  std::vector<HandoffFrame> frames;
  // Null: gRPC alone, and no frame on a device. Serves no other call meanwhile.
  DeviceLink* link = nullptr;
  absl::Duration batch_patience = kBatchPatience;
};

struct HandoffReport {
  uint64_t frames_over_link = 0;  // Acknowledged; the others went over gRPC.
  // Why the link was given up; OK if it was not.
  absl::Status link_status;
};

// Any thread.
class PeerClient {
 public:
  // "host:port" or "unix:/path"; InvalidArgument for another form. Does not
  // connect.
  static absl::StatusOr<std::unique_ptr<PeerClient>> Open(
      absl::string_view address);

  // MeetingPlace::Join there. Unavailable while nobody serves the address.
  absl::StatusOr<Meeting> Join(const GroupPlace& place, ByteSpan id,
                               const CallLimits& limits);

  // Returns when the receiver has acknowledged every frame. Frames go over the
  // link, if both ends have that of one generation, in batches, and over gRPC
  // from where that fails; a frame longer than a batch goes over gRPC. A
  // receiver that is away, or does not expect the transfer yet, is tried again
  // until the deadline: one that was started anew says itself from which frame
  // on. Errors: InvalidArgument (the plan), DeadlineExceeded (says how far it
  // came), Cancelled (here, or the receiver gave it up), Aborted (another
  // sender took over), and what the receiver's sink answered.
  absl::StatusOr<HandoffReport> HandOff(const HandoffPlan& plan,
                                        const CallLimits& limits);

 private:
  explicit PeerClient(std::shared_ptr<grpc::Channel> channel)
      : channel_(std::move(channel)) {}

  const std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_PEER_CLIENT_H_
