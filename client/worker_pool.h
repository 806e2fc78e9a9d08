// A few threads that run tasks in the order in which they came.
#ifndef LATENTKV_CLIENT_WORKER_POOL_H_
#define LATENTKV_CLIENT_WORKER_POOL_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace latentkv {

// Thread-safe.
class WorkerPool {
 public:
  explicit WorkerPool(uint32_t threads);
  // Runs what was added before it returns.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // `task` must not throw.
  void Add(std::function<void()> task);

 private:
  void Work();
  void Close();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_WORKER_POOL_H_
