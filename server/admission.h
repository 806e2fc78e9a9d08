// How many calls of a kind may run at once, and how many bytes they may hold.
#ifndef LATENTKV_SERVER_ADMISSION_H_
#define LATENTKV_SERVER_ADMISSION_H_

#include <atomic>
#include <cstdint>

namespace latentkv {

class Admission {
 public:
  explicit Admission(int limit) : limit_(limit) {}

  // Holds one place until it dies, if admitted.
  class Ticket {
   public:
    explicit Ticket(Admission* admission) : admission_(admission) {
      admitted_ = admission_->running_.fetch_add(1) < admission_->limit_;
    }
    ~Ticket() { admission_->running_.fetch_sub(1); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    bool admitted() const { return admitted_; }

   private:
    Admission* admission_;
    bool admitted_;
  };

 private:
  const int limit_;
  std::atomic<int> running_{0};
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
