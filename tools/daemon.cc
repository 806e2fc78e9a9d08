#include "tools/daemon.h"

#include "absl/strings/str_cat.h"

namespace latentkv {

CallLimits DaemonLimits() { return CallLimits::In(absl::Seconds(10)); }

Outcome DaemonFailure(const absl::Status& status, absl::string_view address) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return Outcome::Failed(absl::StrCat(
          "no daemon answers at ", address, " (", status.message(), ")\n",
          "start one with \"latentkvd --data DIR\", or name another with "
          "--address or ",
          "LATENTKV_ADDRESS"));
    case absl::StatusCode::kDeadlineExceeded:
      return Outcome::Failed(absl::StrCat(
          "the daemon at ", address, " did not answer in time; try again"));
    case absl::StatusCode::kUnimplemented:
      return Outcome::Failed(
          absl::StrCat("what answers at ", address,
                       " is no latentkvd, or one of another version (",
                       status.message(), ")"));
    case absl::StatusCode::kInvalidArgument:
      return Outcome::Misused(std::string(status.message()));
    default:
      return Outcome::Failed(
          absl::StrCat("the daemon at ", address, " says: ", status.message()));
  }
}

}  // namespace latentkv
