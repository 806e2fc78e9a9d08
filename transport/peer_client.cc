#include "transport/peer_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/handoff_sender.h"
#include "transport/message_layout.h"
#include "transport/wire_call.h"
#include "transport/wire_channel.h"

namespace latentkv {

absl::StatusOr<std::unique_ptr<PeerClient>> PeerClient::Open(
    absl::string_view address) {
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      OpenWireChannel(address);
  if (!channel.ok()) return channel.status();
  return std::unique_ptr<PeerClient>(new PeerClient(*std::move(channel)));
}

absl::StatusOr<Meeting> PeerClient::Join(const GroupPlace& place, ByteSpan id,
                                         const CallLimits& limits) {
  absl::Status status = CheckJoin(place, id);
  if (!status.ok()) return status;
  v1::JoinRequest request;
  request.set_group(place.group);
  request.set_rank(place.rank);
  request.set_ranks(place.ranks);
  request.set_id(id.data(), id.size());
  WireCall call(channel_, "/latentkv.v1.Peer/Join", limits);
  call.Send(SerializeMessage(request));
  call.SendDone();
  v1::JoinResponse response;
  grpc::ByteBuffer message;
  bool parsed = false;
  while (call.Receive(&message)) parsed = ParseMessage(message, &response);
  status = call.Finish();
  if (!status.ok()) return status;
  if (!parsed || response.generation() == 0 || response.id().empty() ||
      response.id().size() > kGroupIdBytesMax) {
    return absl::InternalError("the answer to a join is none");
  }
  return Meeting{response.generation(),
                 Bytes(response.id().begin(), response.id().end())};
}

absl::StatusOr<HandoffReport> PeerClient::HandOff(const HandoffPlan& plan,
                                                  const CallLimits& limits) {
  absl::Status status = CheckHandoff(plan);
  if (!status.ok()) return status;
  return HandoffSender(channel_, plan, limits).Run();
}

}  // namespace latentkv
