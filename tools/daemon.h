// The daemon, as the verbs ask it.
#ifndef LATENTKV_TOOLS_DAEMON_H_
#define LATENTKV_TOOLS_DAEMON_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tools/verb.h"
#include "transport/cache_channel.h"

namespace latentkv {

// Of one call: a person waits for it.
CallLimits DaemonLimits();

// A verb's outcome when `status` came from the daemon at `address`, or from
// looking for it: what is wrong and what to do about it. Misused if the address
// is of no known form.
Outcome DaemonFailure(const absl::Status& status, absl::string_view address);

}  // namespace latentkv

#endif  // LATENTKV_TOOLS_DAEMON_H_
