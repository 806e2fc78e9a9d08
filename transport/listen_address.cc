#include "transport/listen_address.h"

#include <arpa/inet.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

bool IsLoopbackHost(absl::string_view host) {
  if (host == "localhost" || host == "[::1]") return true;
  // Only a whole dotted address counts: a name such as 127.example.org is
  // somebody else's.
  in_addr address{};
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         (ntohl(address.s_addr) >> 24) == 127;
}

}  // namespace

absl::Status CheckListenAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) {
    // The kernel's bound on the path of a socket, with its closing zero.
    if (address.size() > 5 && address.size() - 5 < 108) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", address, "\": the path of a socket has 1 to 107 bytes"));
  }
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == absl::string_view::npos ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is neither host:port nor unix:PATH"));
  }
  if (IsLoopbackHost(address.substr(0, colon))) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", address,
                   "\" can be reached from other machines, and nobody is asked "
                   "for credentials yet: listen on ",
                   "127.0.0.1:PORT, [::1]:PORT or unix:PATH"));
}

}  // namespace latentkv
