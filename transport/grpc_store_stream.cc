// The Store stream: a frame is sent from where it lies.
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/rpc_method.h>

#include "latentkv/v1/cache.grpc.pb.h"
#include "transport/convert.h"
#include "transport/grpc_call.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

static_assert(v1::StoreRequest::kFrameFieldNumber == kLargeField);

grpc::ByteBuffer LayOut(const StoreItem& item) {
  v1::StoreRequest head;
  head.set_sequence(item.sequence);
  if (!item.parent.IsZero()) head.set_parent(DigestBytes(item.parent));
  head.set_sync(item.sync);
  return LayOutMessage(head, *item.frame, item.frame);
}

class GrpcStoreStream final : public StoreStream {
 public:
  using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, v1::StoreResponse>;

  GrpcStoreStream(std::shared_ptr<grpc::Channel> channel, const CallLimits& limits)
      : channel_(std::move(channel)),
        call_(limits),
        stream_(grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, v1::StoreResponse>::Create(
            channel_.get(),
            grpc::internal::RpcMethod("/latentkv.v1.Cache/Store", grpc::internal::RpcMethod::BIDI_STREAMING, channel_),
            call_.context())) {}

  ~GrpcStoreStream() override {
    if (finished_) return;
    call_.context()->TryCancel();
    stream_->Finish();
  }

  bool Send(const StoreItem& item) override {
    if (item.frame == nullptr) return false;
    return stream_->Write(LayOut(item));
  }
  void SendDone() override { stream_->WritesDone(); }
  bool ReadAck(StoreAck* ack) override {
    v1::StoreResponse response;
    if (!stream_->Read(&response)) return false;
    ack->sequence = response.sequence();
    ack->status = response.code() == 0
                      ? absl::OkStatus()
                      : absl::Status(static_cast<absl::StatusCode>(response.code()), response.message());
    return true;
  }
  absl::Status Finish() override {
    finished_ = true;
    return FromGrpc(stream_->Finish());
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  GrpcCall call_;
  std::unique_ptr<Stream> stream_;
  bool finished_ = false;
};

}  // namespace

std::unique_ptr<StoreStream> OpenGrpcStore(const std::shared_ptr<grpc::Channel>& channel, const CallLimits& limits) {
  return std::make_unique<GrpcStoreStream>(channel, limits);
}

}  // namespace latentkv
