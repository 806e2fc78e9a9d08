// A bound on what was received and is not yet decoded.
#ifndef LATENTKV_CLIENT_BACKLOG_H_
#define LATENTKV_CLIENT_BACKLOG_H_

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace latentkv {

// Thread-safe.
class Backlog {
 public:
  explicit Backlog(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Waits until `bytes` more fit; more than bytes_max fit when there is nothing
  // else.
  void Add(uint64_t bytes) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock,
                  [&] { return items_ == 0 || bytes_ + bytes <= bytes_max_; });
    bytes_ += bytes;
    ++items_;
  }
  // One more, of no bytes; never waits.
  void AddItem() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++items_;
  }
  void Remove(uint64_t bytes) {
    // Notified under the lock: whoever waits may destroy this as soon as it is
    // empty.
    std::lock_guard<std::mutex> lock(mutex_);
    bytes_ -= bytes;
    --items_;
    changed_.notify_all();
  }
  void WaitUntilEmpty() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return items_ == 0; });
  }

 private:
  const uint64_t bytes_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t bytes_ = 0, items_ = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_BACKLOG_H_
