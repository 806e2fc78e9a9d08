// CacheChannel over gRPC.
#ifndef LATENTKV_TRANSPORT_GRPC_CHANNEL_H_
#define LATENTKV_TRANSPORT_GRPC_CHANNEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/cache_channel.h"

namespace latentkv {

// "host:port" or "unix:/path". Does not connect: a daemon that is away shows as
// Unavailable in each call. InvalidArgument for an address of another form.
absl::StatusOr<std::unique_ptr<CacheChannel>> MakeGrpcChannel(
    absl::string_view address);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_GRPC_CHANNEL_H_
