// What every call over gRPC shares. Of this folder alone.
#ifndef LATENTKV_TRANSPORT_GRPC_CALL_H_
#define LATENTKV_TRANSPORT_GRPC_CALL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>

#include "absl/time/time.h"
#include "transport/cache_channel.h"

namespace latentkv {

// A context under `limits`; unhooked from their token when it dies.
class GrpcCall {
 public:
  explicit GrpcCall(const CallLimits& limits) : cancel_(limits.cancel) {
    context_.set_deadline(absl::ToChronoTime(limits.deadline));
    if (cancel_ != nullptr) hook_ = cancel_->Hook([this] { context_.TryCancel(); });
  }
  ~GrpcCall() {
    if (cancel_ != nullptr) cancel_->Unhook(hook_);
  }
  GrpcCall(const GrpcCall&) = delete;
  GrpcCall& operator=(const GrpcCall&) = delete;

  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
  CancelToken* cancel_;
  uint64_t hook_ = 0;
};

std::unique_ptr<StoreStream> OpenGrpcStore(const std::shared_ptr<grpc::Channel>& channel, const CallLimits& limits);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_GRPC_CALL_H_
