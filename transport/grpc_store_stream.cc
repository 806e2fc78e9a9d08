// The Store stream, its messages laid out by hand so that a frame is sent from where it lies.
#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>

#include <array>

#include "latentkv/v1/cache.grpc.pb.h"
#include "transport/convert.h"
#include "transport/grpc_call.h"

namespace latentkv {
namespace {

using google::protobuf::io::CodedOutputStream;

constexpr uint8_t kFrameTag = (v1::StoreRequest::kFrameFieldNumber << 3) | 2;  // Length-delimited.
static_assert(v1::StoreRequest::kFrameFieldNumber < 16, "the tag is one byte");

void FreeFrame(void* held) { delete static_cast<std::shared_ptr<const Bytes>*>(held); }

// Equal to the serialized StoreRequest.
grpc::ByteBuffer LayOut(const StoreItem& item) {
  v1::StoreRequest head;
  head.set_sequence(item.sequence);
  if (!item.parent.IsZero()) head.set_parent(DigestBytes(item.parent));
  head.set_sync(item.sync);
  std::string bytes = head.SerializeAsString();
  std::array<uint8_t, 11> tag{kFrameTag};
  const uint8_t* end = CodedOutputStream::WriteVarint64ToArray(item.frame->size(), tag.data() + 1);
  bytes.append(reinterpret_cast<const char*>(tag.data()), end - tag.data());
  auto* held = new std::shared_ptr<const Bytes>(item.frame);
  const std::array<grpc::Slice, 2> slices = {
      grpc::Slice(bytes),
      grpc::Slice(const_cast<uint8_t*>(item.frame->data()), item.frame->size(), FreeFrame, held)};
  return grpc::ByteBuffer(slices.data(), slices.size());
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
