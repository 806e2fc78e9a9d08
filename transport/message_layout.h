// Messages as bytes; a large field is sent from where its bytes lie.
#ifndef LATENTKV_TRANSPORT_MESSAGE_LAYOUT_H_
#define LATENTKV_TRANSPORT_MESSAGE_LAYOUT_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "core/bytes.h"
#include "core/limits.h"

namespace latentkv {

// Of every message that has one: proto/README.md.
inline constexpr int kLargeField = 15;
// The largest frame and what is around it.
inline constexpr int kMessageBytesMax =
    static_cast<int>(kFrameBytesMax + (1u << 20));

// What `head` with its large field set to `bytes` serializes to. `owner` keeps
// them until they have been sent.
grpc::ByteBuffer LayOutMessage(const google::protobuf::MessageLite& head,
                               ByteSpan bytes,
                               std::shared_ptr<const void> owner);

grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message);
// False if the bytes are not such a message.
bool ParseMessage(const grpc::ByteBuffer& bytes,
                  google::protobuf::MessageLite* message);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_MESSAGE_LAYOUT_H_
