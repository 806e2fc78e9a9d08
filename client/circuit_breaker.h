// Whether the daemon is worth asking.
#ifndef LATENTKV_CLIENT_CIRCUIT_BREAKER_H_
#define LATENTKV_CLIENT_CIRCUIT_BREAKER_H_

#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/failure_log.h"
#include "core/clock.h"

namespace latentkv {

// Closed, every call may go. The first that finds the daemon away opens it:
// then no call goes until a pause is over, after which one may, and decides
// whether the breaker closes or the next pause is twice as long. Thread-safe.
class CircuitBreaker {
 public:
  // Both outlive it.
  CircuitBreaker(const Clock* clock, FailureLog* log)
      : clock_(clock), log_(log) {}

  // A call that goes: Report its outcome, or it counts for nothing. Must not
  // outlive the breaker.
  class Attempt {
   public:
    Attempt() = default;
    Attempt(Attempt&& other) noexcept;
    Attempt& operator=(Attempt&&) = delete;
    ~Attempt();
    // False: the call may not go.
    explicit operator bool() const { return breaker_ != nullptr; }
    void Report(const absl::Status& status);

   private:
    friend class CircuitBreaker;
    Attempt(CircuitBreaker* breaker, bool probe, absl::Time began)
        : breaker_(breaker), probe_(probe), began_(began) {}
    CircuitBreaker* breaker_ = nullptr;
    bool probe_ = false;
    absl::Time began_;
  };
  Attempt Enter();

  // Whether the next Enter is refused.
  bool refuses() const;
  bool open() const;

 private:
  enum class Verdict { kThere, kAway, kUnknown };
  void Leave(bool probe, Verdict verdict, const absl::Status& status);

  const Clock* const clock_;
  FailureLog* const log_;
  mutable std::mutex mutex_;
  bool open_ = false;
  bool probing_ = false;
  absl::Duration pause_;
  absl::Time retry_at_, opened_at_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_CIRCUIT_BREAKER_H_
