// The bytes that wait to be sent, bounded.
#ifndef LATENTKV_CLIENT_STAGING_BUDGET_H_
#define LATENTKV_CLIENT_STAGING_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <utility>

namespace latentkv {

// Thread-safe.
class StagingBudget {
 public:
  explicit StagingBudget(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // A share of the budget, given back when it dies.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)),
          bytes_(std::exchange(other.bytes_, 0)) {}
    Share& operator=(Share&& other) noexcept {
      Share taken(std::move(other));
      std::swap(budget_, taken.budget_);
      std::swap(bytes_, taken.bytes_);
      return *this;
    }
    ~Share() { Resize(0); }
    explicit operator bool() const { return budget_ != nullptr; }
    // A frame takes the place of its raw block. It may be larger by what the
    // frame adds: over the bound, not refused.
    void Resize(uint64_t bytes) {
      if (budget_ != nullptr) budget_->used_ += bytes - bytes_;
      bytes_ = bytes;
    }

   private:
    friend class StagingBudget;
    Share(StagingBudget* budget, uint64_t bytes)
        : budget_(budget), bytes_(bytes) {}
    StagingBudget* budget_ = nullptr;  // Outlives the share.
    uint64_t bytes_ = 0;
  };

  // An empty share if there is no room.
  Share Take(uint64_t bytes) {
    if (used_.fetch_add(bytes) + bytes <= bytes_max_) return Share(this, bytes);
    used_ -= bytes;
    return {};
  }

 private:
  const uint64_t bytes_max_;
  std::atomic<uint64_t> used_{0};
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STAGING_BUDGET_H_
