// Memory of raw blocks that is used again: fresh memory would cost the engine's
// thread a page fault for every 4 KiB.
#ifndef LATENTKV_CLIENT_RAW_BUFFERS_H_
#define LATENTKV_CLIENT_RAW_BUFFERS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/device.h"

namespace latentkv {

// Thread-safe. Lives as long as one of its buffers; made by std::make_shared.
class RawBuffers : public std::enable_shared_from_this<RawBuffers> {
 public:
  class GiveBack {
   public:
    explicit GiveBack(std::shared_ptr<RawBuffers> buffers = nullptr)
        : buffers_(std::move(buffers)) {}
    void operator()(uint8_t* bytes) const { buffers_->Keep(bytes); }

   private:
    std::shared_ptr<RawBuffers> buffers_;
  };
  using Buffer = std::unique_ptr<uint8_t[], GiveBack>;

  virtual ~RawBuffers() = default;
  // Room for one block, of anything; null if there is none left.
  Buffer Take() { return Buffer(TakeBytes(), GiveBack(shared_from_this())); }

 private:
  virtual uint8_t* TakeBytes() = 0;
  virtual void Keep(uint8_t* bytes) = 0;
};

// As many as are asked for.
class HostBuffers final : public RawBuffers {
 public:
  // Kept when nobody uses them: what an engine computes in a step or two, 2800
  // tokens of SmolLM2.
  static constexpr uint64_t kKeptBytesMax = uint64_t{64} << 20;

  explicit HostBuffers(uint64_t buffer_bytes)
      : buffer_bytes_(buffer_bytes),
        kept_max_(kKeptBytesMax / std::max<uint64_t>(1, buffer_bytes)) {}

 private:
  uint8_t* TakeBytes() override {
    std::unique_lock<std::mutex> lock(mutex_);
    std::unique_ptr<uint8_t[]> bytes;
    if (!kept_.empty()) {
      bytes = std::move(kept_.back());
      kept_.pop_back();
    }
    lock.unlock();
    if (bytes == nullptr)
      bytes = std::make_unique_for_overwrite<uint8_t[]>(buffer_bytes_);
    return bytes.release();
  }
  void Keep(uint8_t* from) override {
    std::unique_ptr<uint8_t[]> bytes(from);
    std::lock_guard<std::mutex> lock(mutex_);
    if (kept_.size() < kept_max_) kept_.push_back(std::move(bytes));
  }

  const uint64_t buffer_bytes_;
  const size_t kept_max_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<uint8_t[]>> kept_;
};

// A fixed number, cut out of pinned memory: to pin more would hold up the
// device.
class PinnedBuffers final : public RawBuffers {
 public:
  // `memory` has room for `count` of them.
  PinnedBuffers(PinnedMemory memory, uint64_t buffer_bytes, uint64_t count)
      : memory_(std::move(memory)) {
    for (uint64_t i = 0; i < count; ++i)
      free_.push_back(memory_.get() + i * buffer_bytes);
  }

 private:
  uint8_t* TakeBytes() override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return nullptr;
    uint8_t* bytes = free_.back();
    free_.pop_back();
    return bytes;
  }
  void Keep(uint8_t* bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(bytes);
  }

  const PinnedMemory memory_;
  std::mutex mutex_;
  std::vector<uint8_t*> free_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_RAW_BUFFERS_H_
