#include "client/failure_log.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "spdlog/sinks/stdout_color_sinks.h"

namespace latentkv {
namespace {

constexpr absl::Duration kPeriod = absl::Minutes(1);

}  // namespace

void FailureLog::Warn(Failure kind, absl::string_view message) {
  std::string text(message);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Kind& state = kinds_[static_cast<size_t>(kind)];
    const absl::Time now = clock_->Now();
    if (now - state.written < kPeriod) {
      ++state.withheld;
      return;
    }
    if (state.withheld > 0)
      absl::StrAppend(&text, " (and ", state.withheld, " like it before)");
    state = {now, 0};
  }
  logger_->warn(text);
}

void FailureLog::Info(absl::string_view message) {
  logger_->info(std::string(message));
}

std::shared_ptr<spdlog::logger> MakeClientLogger() {
  return std::make_shared<spdlog::logger>(
      "latentkv", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
}

}  // namespace latentkv
