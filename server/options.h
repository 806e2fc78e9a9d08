// What the daemon's operator may choose.
#ifndef LATENTKV_SERVER_OPTIONS_H_
#define LATENTKV_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace latentkv {

struct DaemonOptions {
  std::vector<std::string> listen;  // Checked by CheckListenAddress.
  std::string data;
  uint64_t capacity_bytes = uint64_t{64} << 30;
  uint64_t memory_bytes = uint64_t{1} << 30;
  std::string metrics_address;  // Empty: no metrics.
  std::string log_level = "info";
  bool help = false;
  bool version = false;
};

// InvalidArgument names the flag that is wrong. Flags are --name=value or
// --name value.
absl::StatusOr<DaemonOptions> ParseDaemonOptions(
    absl::Span<const std::string> arguments);
std::string DaemonHelp();

// Bytes of "4096", "512MiB", "10GiB", "2TB": powers of 1024 with an i, of 1000
// without. InvalidArgument.
absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text);

}  // namespace latentkv

#endif  // LATENTKV_SERVER_OPTIONS_H_
