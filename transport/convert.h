// Between the wire's messages and our types. Everything that comes off the wire
// is checked here.
#ifndef LATENTKV_TRANSPORT_CONVERT_H_
#define LATENTKV_TRANSPORT_CONVERT_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/digest.h"
#include "core/encoding.h"
#include "latentkv/v1/cache.pb.h"
#include "transport/cache_channel.h"

namespace latentkv {

// Codes of both are the same numbers; messages are kept.
absl::Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

std::string DigestBytes(const Digest& digest);
void FillRef(const Digest& key, const Encoding& encoding, v1::RecordRef* ref);

struct RecordName {
  Digest key;
  Encoding encoding;
};
// InvalidArgument for a key or an encoding of the wrong form.
absl::StatusOr<RecordName> FromRef(const v1::RecordRef& ref);

void FillSession(const RemoteSession& session, v1::Session* message);
absl::StatusOr<RemoteSession> FromSession(const v1::Session& message);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_CONVERT_H_
