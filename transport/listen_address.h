// Where servers of ours may listen.
#ifndef LATENTKV_TRANSPORT_LISTEN_ADDRESS_H_
#define LATENTKV_TRANSPORT_LISTEN_ADDRESS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace latentkv {

// OK for unix:PATH and for host:port where host is a loopback address. No
// server asks for credentials, so every other address is InvalidArgument.
absl::Status CheckListenAddress(absl::string_view address);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_LISTEN_ADDRESS_H_
