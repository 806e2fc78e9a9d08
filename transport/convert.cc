#include "transport/convert.h"

#include "core/bytes.h"

namespace latentkv {

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
}

std::string DigestBytes(const Digest& digest) {
  return std::string(reinterpret_cast<const char*>(digest.bytes.data()),
                     digest.bytes.size());
}

void FillRef(const Digest& key, const Encoding& encoding, v1::RecordRef* ref) {
  ref->set_key(DigestBytes(key));
  ref->set_encoding(encoding.ToBytes());
}

absl::StatusOr<RecordName> FromRef(const v1::RecordRef& ref) {
  absl::StatusOr<Digest> key = DigestFromBytes(AsBytes(ref.key()));
  if (!key.ok()) return key.status();
  absl::StatusOr<Encoding> encoding =
      EncodingFromBytes(AsBytes(ref.encoding()));
  if (!encoding.ok()) return encoding.status();
  return RecordName{*key, *encoding};
}

void FillSession(const RemoteSession& session, v1::Session* message) {
  message->set_name(session.name);
  message->set_last_key(DigestBytes(session.last_key));
  message->mutable_tokens()->Assign(session.tokens.begin(),
                                    session.tokens.end());
  message->set_record(session.record);
  message->set_created_ms(session.created_ms);
  message->set_updated_ms(session.updated_ms);
  message->set_pinned(session.pinned);
  message->set_stored_bytes(session.stored_bytes);
}

absl::StatusOr<RemoteSession> FromSession(const v1::Session& message) {
  RemoteSession session;
  if (!message.last_key().empty()) {
    absl::StatusOr<Digest> key = DigestFromBytes(AsBytes(message.last_key()));
    if (!key.ok()) return key.status();
    session.last_key = *key;
  }
  session.name = message.name();
  session.tokens.assign(message.tokens().begin(), message.tokens().end());
  session.record = message.record();
  session.created_ms = message.created_ms();
  session.updated_ms = message.updated_ms();
  session.pinned = message.pinned();
  session.stored_bytes = message.stored_bytes();
  return session;
}

}  // namespace latentkv
