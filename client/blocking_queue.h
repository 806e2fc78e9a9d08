// Hands items from some threads to one.
#ifndef LATENTKV_CLIENT_BLOCKING_QUEUE_H_
#define LATENTKV_CLIENT_BLOCKING_QUEUE_H_

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/time/time.h"

namespace latentkv {

// Thread-safe. Unbounded: who pushes holds a share of some budget for each
// item.
template <typename T>
class BlockingQueue {
 public:
  void Push(T item) {
    std::lock_guard<std::mutex> lock(mutex_);
    items_.push_back(std::move(item));
    changed_.notify_one();
  }
  // The oldest item; nullopt if there is none by `deadline`, or none and the
  // queue is closed.
  std::optional<T> Pop(absl::Time deadline) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, absl::ToChronoTime(deadline),
                        [this] { return closed_ || !items_.empty(); });
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }
  // The oldest item if there is one and `wanted(item)`; never waits.
  template <typename Wanted>
  std::optional<T> PopIf(const Wanted& wanted) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (items_.empty() || !wanted(items_.front())) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }
  // Waits until there is an item; false if there is none and the queue is
  // closed.
  bool Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !items_.empty(); });
    return !items_.empty();
  }
  // Nothing is pushed any more; what is there can still be taken.
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_BLOCKING_QUEUE_H_
