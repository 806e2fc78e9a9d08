#include "client/worker_pool.h"

#include <utility>

namespace latentkv {

WorkerPool::WorkerPool(uint32_t threads) {
  try {
    for (uint32_t i = 0; i < threads; ++i)
      threads_.emplace_back([this] { Work(); });
  } catch (...) {  // A thread that cannot be had; those that were must end
                   // before they are destroyed.
    Close();
    throw;
  }
}

WorkerPool::~WorkerPool() { Close(); }

void WorkerPool::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::Add(std::function<void()> task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void WorkerPool::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // Frees what it holds outside the lock.
    lock.lock();
  }
}

}  // namespace latentkv
