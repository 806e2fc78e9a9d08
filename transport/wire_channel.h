// How every client of ours connects.
#ifndef LATENTKV_TRANSPORT_WIRE_CHANNEL_H_
#define LATENTKV_TRANSPORT_WIRE_CHANNEL_H_

#include <grpcpp/channel.h>

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace latentkv {

// "host:port" or "unix:/path". Does not connect: a server that is away shows as
// Unavailable in each call. InvalidArgument for an address of another form.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenWireChannel(
    absl::string_view address);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_WIRE_CHANNEL_H_
