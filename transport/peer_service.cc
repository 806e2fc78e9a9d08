#include "transport/peer_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/convert.h"
#include "transport/grpc_library.h"
#include "transport/listen_address.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

// A rank holds a thread while it waits.
constexpr absl::Duration kJoinMax = absl::Minutes(5);
// Every stream and every rank that waits holds one.
constexpr int kThreadsMax = 256;
static_assert(kJoinsMax <= kThreadsMax / 2);

class GrpcPeerServer final : public PeerServer {
 public:
  GrpcPeerServer(std::unique_ptr<grpc::Server> server, std::string address)
      : server_(std::move(server)), address_(std::move(address)) {}
  ~GrpcPeerServer() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
  const std::string& address() const override { return address_; }

 private:
  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
};

}  // namespace

absl::StatusOr<ExpectedTransfer> PeerService::Expect(ReceptionPlan plan) {
  if (plan.transfer.empty() || plan.transfer.size() > kTransferNameBytesMax ||
      plan.sink == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("a transfer has a name of 1 to ", kTransferNameBytesMax,
                     " bytes, and a sink"));
  }
  std::lock_guard lock(mutex_);
  if (receptions_.size() >= kReceptionsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kReceptionsMax, " transfers are expected already"));
  }
  const std::string name = plan.transfer;
  auto reception = std::make_shared<Reception>(std::move(plan));
  if (!receptions_.emplace(name, reception).second) {
    return absl::AlreadyExistsError(
        absl::StrCat("transfer ", name, " is expected already"));
  }
  return ExpectedTransfer(reception.get(), [this, name](Reception* expected) {
    std::shared_ptr<Reception> forgotten;
    {
      std::lock_guard lock(mutex_);
      const auto found = receptions_.find(name);
      forgotten = std::move(found->second);
      receptions_.erase(found);
    }
    expected->Close();
    const uint64_t frames = expected->frames_complete();
    std::lock_guard lock(mutex_);
    if (frames > 0) complete_.emplace_front(name, frames);
    if (complete_.size() > kCompleteMax) complete_.pop_back();
  });
}

grpc::Status PeerService::Join(grpc::ServerContext* context,
                               const v1::JoinRequest* request,
                               v1::JoinResponse* response) {
  const absl::Time deadline =
      std::min(absl::FromChrono(context->deadline()), absl::Now() + kJoinMax);
  absl::StatusOr<Meeting> meeting =
      meetings_.Join({request->group(), request->rank(), request->ranks()},
                     AsBytes(request->id()), deadline,
                     [context] { return context->IsCancelled(); });
  if (!meeting.ok()) return ToGrpc(meeting.status());
  response->set_generation(meeting->generation);
  response->set_id(meeting->id.data(), meeting->id.size());
  return grpc::Status::OK;
}

bool PeerService::IsComplete(const v1::HandOffBegin& begin) const {
  const auto found = std::find_if(
      complete_.begin(), complete_.end(),
      [&](const auto& complete) { return complete.first == begin.transfer(); });
  return found != complete_.end() && found->second == begin.frames();
}

grpc::Status PeerService::HandOff(grpc::ServerContext* context,
                                  HandoffStream* stream) {
  v1::HandOffRequest first;
  if (!stream->Read(&first) || !first.has_begin()) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            "the stream does not begin with `begin`"};
  }
  std::shared_ptr<Reception> reception;
  {
    std::lock_guard lock(mutex_);
    const auto found = receptions_.find(first.begin().transfer());
    if (found != receptions_.end()) reception = found->second;
    if (reception == nullptr && !IsComplete(first.begin())) {
      return {grpc::StatusCode::NOT_FOUND, "nobody expects this transfer here"};
    }
  }
  if (reception == nullptr) {
    v1::HandOffResponse all;
    all.set_next(first.begin().frames());
    stream->Write(all);
    return grpc::Status::OK;
  }
  return reception->Serve(context, stream, first.begin());
}

grpc::Status PeerService::Deliver(grpc::ServerContext*,
                                  grpc::ServerReader<v1::RankMessage>* stream,
                                  v1::RankReceipt*) {
  if (ranks_ == nullptr)
    return {grpc::StatusCode::UNIMPLEMENTED,
            "no rank of an engine is served here"};
  v1::RankMessage message;
  while (stream->Read(&message)) {
    absl::Status status = ranks_->Take(message);
    if (!status.ok()) return ToGrpc(status);
  }
  return grpc::Status::OK;
}

absl::StatusOr<std::unique_ptr<PeerServer>> PeerServer::Start(
    const std::string& address, PeerService* service) {
  absl::Status status = CheckListenAddress(address);
  if (!status.ok()) return status;
  KeepGrpcUp();
  int port = 0;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetResourceQuota(
      grpc::ResourceQuota("latentkv peer").SetMaxThreads(kThreadsMax));
  // Or a second process on the same port would take half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port)
      .RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr)
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": is it taken?"));
  std::string bound =
      absl::StartsWith(address, "unix:")
          ? address
          : absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  return std::make_unique<GrpcPeerServer>(std::move(server), std::move(bound));
}

}  // namespace latentkv
