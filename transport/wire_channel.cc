#include "transport/wire_channel.h"

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "transport/grpc_library.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

bool WellFormed(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return address.size() > 5;
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port > 0 &&
         port < 65536;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenWireChannel(
    absl::string_view address) {
  if (!WellFormed(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is neither host:port nor unix:PATH"));
  }
  KeepGrpcUp();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  // A restarted server is found again soon: gRPC's own back-off grows to two
  // minutes.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // Named a back-off, it is how long one attempt to connect may take: a busy
  // machine needs more than a moment.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  // The address is this machine's: no proxy of the environment belongs in
  // between.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(
      std::string(address), grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace latentkv
