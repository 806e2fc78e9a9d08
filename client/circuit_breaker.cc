#include "client/circuit_breaker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

// Between tries: short enough that a restarted daemon is used by the next
// request, long enough that one that swallows calls costs an engine no more
// than one call's deadline in five seconds.
constexpr absl::Duration kPauseMin = absl::Milliseconds(200);
constexpr absl::Duration kPauseMax = absl::Seconds(5);
// A call that was given less says nothing about the daemon when its time is
// over.
constexpr absl::Duration kPatience = absl::Milliseconds(100);

}  // namespace

CircuitBreaker::Attempt::Attempt(Attempt&& other) noexcept
    : breaker_(std::exchange(other.breaker_, nullptr)),
      probe_(other.probe_),
      began_(other.began_) {}

CircuitBreaker::Attempt::~Attempt() {
  if (breaker_ != nullptr)
    breaker_->Leave(probe_, Verdict::kUnknown, absl::OkStatus());
}

void CircuitBreaker::Attempt::Report(const absl::Status& status) {
  if (breaker_ == nullptr) return;
  Verdict verdict = Verdict::kThere;
  if (absl::IsCancelled(status)) verdict = Verdict::kUnknown;
  if (absl::IsUnavailable(status)) verdict = Verdict::kAway;
  if (absl::IsDeadlineExceeded(status)) {
    verdict = breaker_->clock_->Now() - began_ < kPatience ? Verdict::kUnknown
                                                           : Verdict::kAway;
  }
  std::exchange(breaker_, nullptr)->Leave(probe_, verdict, status);
}

CircuitBreaker::Attempt CircuitBreaker::Enter() {
  std::lock_guard<std::mutex> lock(mutex_);
  const absl::Time now = clock_->Now();
  if (!open_) return Attempt(this, false, now);
  if (probing_ || now < retry_at_) return {};
  probing_ = true;
  return Attempt(this, true, now);
}

bool CircuitBreaker::refuses() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return open_ && (probing_ || clock_->Now() < retry_at_);
}

bool CircuitBreaker::open() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return open_;
}

void CircuitBreaker::Leave(bool probe, Verdict verdict,
                           const absl::Status& status) {
  std::unique_lock<std::mutex> lock(mutex_);
  const absl::Time now = clock_->Now();
  if (probe) probing_ = false;
  if (verdict == Verdict::kUnknown) return;
  const bool was_open = open_;
  open_ = verdict == Verdict::kAway;
  if (!open_) {
    const absl::Duration away = now - opened_at_;
    lock.unlock();
    if (was_open)
      log_->Info(absl::StrCat("the daemon is back after ",
                              absl::FormatDuration(away)));
    return;
  }
  // Calls that were under way when it opened learn nothing new.
  if (was_open && !probe) return;
  pause_ = was_open ? std::min(2 * pause_, kPauseMax) : kPauseMin;
  retry_at_ = now + pause_;
  if (was_open) return;
  opened_at_ = now;
  lock.unlock();
  log_->Warn(
      Failure::kDaemonAway,
      absl::StrCat("the daemon is away, which is a miss: ", status.message()));
}

}  // namespace latentkv
