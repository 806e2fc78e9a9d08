// Says what went wrong once, not once a block.
#ifndef LATENTKV_CLIENT_FAILURE_LOG_H_
#define LATENTKV_CLIENT_FAILURE_LOG_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/clock.h"
#include "spdlog/logger.h"

namespace latentkv {

enum class Failure : uint8_t {
  kDaemonAway,
  kLookup,
  kFetch,
  kRecordGone,
  kRecordRefused,
  kForget,
  kStore,
  kQueueFull,
};
inline constexpr size_t kFailureKinds = 8;

// Thread-safe; never throws.
class FailureLog {
 public:
  // `clock` outlives it.
  FailureLog(std::shared_ptr<spdlog::logger> logger, const Clock* clock)
      : logger_(std::move(logger)), clock_(clock) {}

  // A warning, unless one of the same kind was written less than a minute ago;
  // then it is counted, and the next one says how many there were.
  void Warn(Failure kind, absl::string_view message);
  void Info(absl::string_view message);

 private:
  struct Kind {
    absl::Time written = absl::InfinitePast();
    uint64_t withheld = 0;
  };

  const std::shared_ptr<spdlog::logger> logger_;
  const Clock* const clock_;
  std::mutex mutex_;
  std::array<Kind, kFailureKinds> kinds_;
};

// Writes to standard error: the program's standard output is not ours.
std::shared_ptr<spdlog::logger> MakeClientLogger();

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_FAILURE_LOG_H_
