// How many calls of a kind may run at once, and how many bytes they may hold.
#ifndef LATENTKV_SERVER_ADMISSION_H_
#define LATENTKV_SERVER_ADMISSION_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "absl/time/time.h"

namespace latentkv {

class Admission {
 public:
  explicit Admission(int limit) : limit_(limit) {}

  // Holds one place until it dies, if admitted.
  class Ticket {
   public:
    explicit Ticket(Admission* admission)
        : admission_(admission), admitted_(admission->Enter()) {}
    ~Ticket() {
      if (admitted_) admission_->Leave();
    }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    bool admitted() const { return admitted_; }

   private:
    Admission* const admission_;
    const bool admitted_;
  };

  // Waits until no place is held, or until `deadline`.
  void AwaitIdle(absl::Time deadline) {
    std::unique_lock lock(mutex_);
    left_.wait_until(lock, absl::ToChronoTime(deadline),
                     [this] { return running_ == 0; });
  }

 private:
  bool Enter() {
    std::lock_guard lock(mutex_);
    if (running_ == limit_) return false;
    ++running_;
    return true;
  }
  void Leave() {
    std::lock_guard lock(mutex_);
    --running_;
    left_.notify_all();
  }

  const int limit_;
  std::mutex mutex_;
  std::condition_variable left_;
  int running_ = 0;
};

// Bytes shared by several calls. Any thread.
class ByteBudget {
 public:
  explicit ByteBudget(uint64_t bytes) : left_(bytes) {}

  bool TryTake(uint64_t bytes) {
    uint64_t left = left_;
    while (bytes <= left) {
      if (left_.compare_exchange_weak(left, left - bytes)) return true;
    }
    return false;
  }
  void Give(uint64_t bytes) { left_ += bytes; }

 private:
  std::atomic<uint64_t> left_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_ADMISSION_H_
