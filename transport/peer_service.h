// The peer service, to be served by a process that others hand frames to or
// meet at: latentkv/v1/peer.proto.
#ifndef LATENTKV_TRANSPORT_PEER_SERVICE_H_
#define LATENTKV_TRANSPORT_PEER_SERVICE_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "latentkv/v1/peer.grpc.pb.h"
#include "transport/meeting_place.h"
#include "transport/reception.h"

namespace latentkv {

// Expected at once: requests that one decode node runs.
inline constexpr size_t kReceptionsMax = 1024;
// Remembered after that.
inline constexpr size_t kCompleteMax = kReceptionsMax;

// Takes what other ranks of an engine deliver. Any thread.
class RankSink {
 public:
  virtual ~RankSink() = default;
  // An error ends the call that brought the message.
  virtual absl::Status Take(const v1::RankMessage& message) = 0;
};

// Stops expecting the transfer when it is let go of; must not outlive the
// service.
using ExpectedTransfer =
    std::unique_ptr<Reception, std::function<void(Reception*)>>;

// Any thread.
class PeerService final : public v1::Peer::Service {
 public:
  // `ranks`, which outlives what serves this, may be null: then nothing is
  // delivered here.
  explicit PeerService(RankSink* ranks = nullptr) : ranks_(ranks) {}
  // For the ranks of this process itself.
  MeetingPlace* meetings() { return &meetings_; }
  // From now on a sender of the transfer is served. InvalidArgument,
  // AlreadyExists, ResourceExhausted.
  absl::StatusOr<ExpectedTransfer> Expect(ReceptionPlan plan);

  grpc::Status Join(grpc::ServerContext* context,
                    const v1::JoinRequest* request,
                    v1::JoinResponse* response) override;
  grpc::Status HandOff(grpc::ServerContext* context,
                       HandoffStream* stream) override;
  grpc::Status Deliver(grpc::ServerContext* context,
                       grpc::ServerReader<v1::RankMessage>* stream,
                       v1::RankReceipt* receipt) override;

 private:
  bool IsComplete(const v1::HandOffBegin& begin) const;  // Under mutex_.

  RankSink* const ranks_;
  MeetingPlace meetings_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Reception>> receptions_;
  // The last that came whole, with their frames: for a sender to whom the last
  // acknowledgement did not come.
  std::deque<std::pair<std::string, uint64_t>> complete_;
};

// The service on a server of its own.
class PeerServer {
 public:
  // InvalidArgument for an address that is not of this machine alone
  // (listen_address.h), Unavailable when it cannot be bound. `service` outlives
  // the server.
  static absl::StatusOr<std::unique_ptr<PeerServer>> Start(
      const std::string& address, PeerService* service);
  virtual ~PeerServer() = default;  // Cancels what is served.
  // As bound, with a real port.
  virtual const std::string& address() const = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_PEER_SERVICE_H_
