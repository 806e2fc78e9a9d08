// Memory of raw blocks that is used again: fresh memory would cost the engine's thread a page fault for every 4 KiB.
#ifndef LATENTKV_CLIENT_RAW_BUFFERS_H_
#define LATENTKV_CLIENT_RAW_BUFFERS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace latentkv {

// Thread-safe. Outlives its buffers.
class RawBuffers {
 public:
  // Kept when nobody uses them: what an engine computes in a step or two, 2800 tokens of SmolLM2.
  static constexpr uint64_t kKeptBytesMax = uint64_t{64} << 20;

  explicit RawBuffers(uint64_t buffer_bytes)
      : buffer_bytes_(buffer_bytes), kept_max_(kKeptBytesMax / std::max<uint64_t>(1, buffer_bytes)) {}

  class GiveBack {
   public:
    explicit GiveBack(RawBuffers* buffers = nullptr) : buffers_(buffers) {}
    void operator()(uint8_t* bytes) const { buffers_->Keep(std::unique_ptr<uint8_t[]>(bytes)); }

   private:
    RawBuffers* buffers_;
  };
  using Buffer = std::unique_ptr<uint8_t[], GiveBack>;

  // buffer_bytes of anything.
  Buffer Take() {
    std::unique_lock<std::mutex> lock(mutex_);
    std::unique_ptr<uint8_t[]> bytes;
    if (!kept_.empty()) {
      bytes = std::move(kept_.back());
      kept_.pop_back();
    }
    lock.unlock();
    if (bytes == nullptr) bytes = std::make_unique_for_overwrite<uint8_t[]>(buffer_bytes_);
    return Buffer(bytes.release(), GiveBack(this));
  }

 private:
  void Keep(std::unique_ptr<uint8_t[]> bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (kept_.size() < kept_max_) kept_.push_back(std::move(bytes));
  }

  const uint64_t buffer_bytes_;
  const size_t kept_max_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<uint8_t[]>> kept_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_RAW_BUFFERS_H_
