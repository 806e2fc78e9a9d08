#include "server/options.h"

#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "transport/listen_address.h"

namespace latentkv {
namespace {

constexpr char kDefaultListen[] = "127.0.0.1:7430";

absl::Status SetBytes(absl::string_view name, absl::string_view value,
                      uint64_t* bytes) {
  absl::StatusOr<uint64_t> parsed = ParseByteSize(value);
  if (!parsed.ok())
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", parsed.status().message()));
  *bytes = *parsed;
  return absl::OkStatus();
}

absl::Status SetFlag(absl::string_view name, absl::string_view value,
                     DaemonOptions* options) {
  if (name == "--listen") {
    for (absl::string_view address :
         absl::StrSplit(value, ',', absl::SkipWhitespace())) {
      absl::Status status = CheckListenAddress(address);
      if (!status.ok()) return status;
      options->listen.emplace_back(address);
    }
    return absl::OkStatus();
  }
  if (name == "--data") {
    options->data = std::string(value);
    return absl::OkStatus();
  }
  if (name == "--capacity-bytes")
    return SetBytes(name, value, &options->capacity_bytes);
  if (name == "--memory-bytes")
    return SetBytes(name, value, &options->memory_bytes);
  if (name == "--metrics-address") {
    options->metrics_address = std::string(value);
    if (value.empty()) return absl::OkStatus();
    if (absl::StartsWith(value, "unix:"))
      return absl::InvalidArgumentError("--metrics-address takes host:port");
    return CheckListenAddress(value);
  }
  if (name == "--log-level") {
    for (absl::string_view level :
         {"trace", "debug", "info", "warn", "error", "off"}) {
      if (value == level) {
        options->log_level = std::string(value);
        return absl::OkStatus();
      }
    }
    return absl::InvalidArgumentError(
        absl::StrCat("--log-level: unknown level \"", value, "\""));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown flag ", name, " (see --help)"));
}

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text) {
  static constexpr std::pair<absl::string_view, double> kUnits[] = {
      {"TiB", 0x1p40}, {"GiB", 0x1p30}, {"MiB", 0x1p20}, {"KiB", 0x1p10},
      {"TB", 1e12},    {"GB", 1e9},     {"MB", 1e6},     {"KB", 1e3},
      {"kB", 1e3},     {"B", 1},
  };
  absl::string_view digits = text;
  double unit = 1;
  for (const auto& [suffix, bytes] : kUnits) {
    if (absl::ConsumeSuffix(&digits, suffix)) {
      unit = bytes;
      break;
    }
  }
  double count = 0;
  digits = absl::StripAsciiWhitespace(digits);
  // 2^62 leaves room for every sum of sizes.
  if (digits.empty() || !absl::SimpleAtod(digits, &count) || !(count >= 0) ||
      !(count * unit <= 0x1p62)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no size (say 10GiB)"));
  }
  return static_cast<uint64_t>(std::llround(count * unit));
}

absl::StatusOr<DaemonOptions> ParseDaemonOptions(
    absl::Span<const std::string> arguments) {
  DaemonOptions options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    absl::string_view name = arguments[i];
    if (name == "--help" || name == "-h") {
      options.help = true;
      return options;
    }
    if (name == "--version") {
      options.version = true;
      return options;
    }
    absl::string_view value;
    if (const size_t equals = name.find('=');
        equals != absl::string_view::npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    } else if (!absl::StartsWith(name, "--")) {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected argument \"", name, "\" (see --help)"));
    } else if (++i < arguments.size()) {
      value = arguments[i];
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " needs a value (see --help)"));
    }
    absl::Status status = SetFlag(name, value, &options);
    if (!status.ok()) return status;
  }
  if (options.listen.empty()) options.listen.push_back(kDefaultListen);
  if (options.data.empty())
    return absl::InvalidArgumentError("--data DIR is needed (see --help)");
  if (options.capacity_bytes == 0)
    return absl::InvalidArgumentError("--capacity-bytes must be above 0");
  return options;
}

std::string DaemonHelp() {
  return R"(usage: latentkvd --data DIR [flags]

Keeps the KV cache blocks of inference engines on this machine's disk.

  --data DIR                 where blocks are kept; made if it is not there
  --listen ADDRESS[,...]     127.0.0.1:7430 by default; also unix:/path; may be given again
  --capacity-bytes SIZE      disk to fill before the oldest blocks go, say 10GiB (64GiB)
  --memory-bytes SIZE        memory for blocks lately used (1GiB)
  --metrics-address ADDRESS  serves Prometheus metrics, say 127.0.0.1:9464 (off)
  --log-level LEVEL          trace, debug, info, warn, error or off (info)
  --version, --help

Only loopback addresses and unix sockets are accepted: there are no credentials yet.
SIGTERM and SIGINT stop the daemon; what was acknowledged is kept.
)";
}

}  // namespace latentkv
