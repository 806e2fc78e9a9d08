#include "transport/grpc_store_stream.h"

#include "latentkv/v1/cache.pb.h"
#include "transport/convert.h"
#include "transport/message_layout.h"
#include "transport/wire_call.h"

namespace latentkv {
namespace {

static_assert(v1::StoreRequest::kFrameFieldNumber == kLargeField);

class GrpcStoreStream final : public StoreStream {
 public:
  GrpcStoreStream(const std::shared_ptr<grpc::Channel>& channel,
                  const CallLimits& limits)
      : call_(channel, "/latentkv.v1.Cache/Store", limits) {}

  bool Send(const StoreItem& item) override {
    if (item.frame == nullptr) return false;
    v1::StoreRequest head;
    head.set_sequence(item.sequence);
    if (!item.parent.IsZero()) head.set_parent(DigestBytes(item.parent));
    head.set_sync(item.sync);
    return call_.Send(LayOutMessage(head, *item.frame, item.frame));
  }
  void SendDone() override { call_.SendDone(); }
  bool ReadAck(StoreAck* ack) override {
    grpc::ByteBuffer message;
    v1::StoreResponse response;
    if (!call_.Receive(&message) || !ParseMessage(message, &response))
      return false;
    ack->sequence = response.sequence();
    ack->status =
        response.code() == 0
            ? absl::OkStatus()
            : absl::Status(static_cast<absl::StatusCode>(response.code()),
                           response.message());
    return true;
  }
  absl::Status Finish() override { return call_.Finish(); }

 private:
  WireCall call_;
};

}  // namespace

std::unique_ptr<StoreStream> OpenGrpcStore(
    const std::shared_ptr<grpc::Channel>& channel, const CallLimits& limits) {
  return std::make_unique<GrpcStoreStream>(channel, limits);
}

}  // namespace latentkv
