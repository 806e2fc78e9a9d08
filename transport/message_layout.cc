#include "transport/message_layout.h"

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <array>
#include <string>
#include <utility>

#include "transport/hand_over.h"

namespace latentkv {
namespace {

constexpr uint8_t kLargeTag = (kLargeField << 3) | 2;  // Length-delimited.
static_assert(kLargeField < 16, "the tag is one byte");

void Release(void* owner) {
  TakeFromGrpc(owner);
  delete static_cast<std::shared_ptr<const void>*>(owner);
}

}  // namespace

grpc::ByteBuffer LayOutMessage(const google::protobuf::MessageLite& head,
                               ByteSpan bytes,
                               std::shared_ptr<const void> owner) {
  std::string front = head.SerializeAsString();
  std::array<uint8_t, 11> tag{kLargeTag};
  const uint8_t* end =
      google::protobuf::io::CodedOutputStream::WriteVarint64ToArray(
          bytes.size(), tag.data() + 1);
  front.append(reinterpret_cast<const char*>(tag.data()), end - tag.data());
  auto* held = new std::shared_ptr<const void>(std::move(owner));
  GiveToGrpc(held);
  const std::array<grpc::Slice, 2> slices = {
      grpc::Slice(front), grpc::Slice(const_cast<uint8_t*>(bytes.data()),
                                      bytes.size(), Release, held)};
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer SerializeMessage(
    const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

bool ParseMessage(const grpc::ByteBuffer& bytes,
                  google::protobuf::MessageLite* message) {
  grpc::ByteBuffer shared = bytes;
  grpc::ProtoBufferReader reader(&shared);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

}  // namespace latentkv
