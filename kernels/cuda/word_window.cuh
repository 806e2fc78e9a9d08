// The words of an entropy-coded stream, handed out to the lanes of a warp.
#ifndef LATENTKV_KERNELS_CUDA_WORD_WINDOW_CUH_
#define LATENTKV_KERNELS_CUDA_WORD_WINDOW_CUH_

#include <cstdint>

#include "kernels/cuda/section_bytes.cuh"

namespace latentkv::cuda {

// 64 words that lanes exchange, up to 96 behind them, and 64 on their way.
// Behind the last word it reads that one again and again: a stream that takes
// more than it has does not end as it must.
class WordWindow {
 public:
  // `count` words from byte `first` on, which is not the section's first.
  __device__ __forceinline__ WordWindow(SectionBytes* bytes, uint32_t first,
                                        uint32_t count, uint32_t lane)
      : bytes_(*bytes),
        next_(first + 2 * lane),
        last_(first + 2 * count - 2),
        count_(count),
        below_((1u << lane) - 1) {
    Load();
    window_ = Loaded();
    Load();
  }
  // Comes before every second Feed, where there is time: two take 64 words at
  // most.
  __device__ __forceinline__ void Refill() {
    const uint32_t halves = behind_ - taken_ / kHalf;
    // A vote, so that the compiler knows that the warp stays together.
    if (!__any_sync(~0u, halves < 2)) return;
    const uint32_t words = Loaded();
    ahead_[0] = halves == 0 ? words : ahead_[0] | words << 16;
    ahead_[1] = halves == 0 ? 0 : words >> 16;
    behind_ += 2;
    Load();
  }
  // The state after a step of the decoder: x << 16 | word where x is below
  // 2^16. Lanes take words in order.
  __device__ __forceinline__ uint32_t Feed(uint32_t x) {
    const bool wants = x < 1u << 16;
    const uint32_t wanting = __ballot_sync(~0u, wants);
    const uint32_t index = taken_ % kHalf + __popc(wanting & below_);
    const uint32_t words = __shfl_sync(~0u, window_, index);
    const uint32_t taken = taken_ + __popc(wanting);
    // By 16 where the window's first half has been taken, without a branch.
    const uint32_t shift = ((taken ^ taken_) & kHalf) / 2;
    window_ = __funnelshift_r(window_, ahead_[0], shift);
    ahead_[0] = __funnelshift_r(ahead_[0], ahead_[1], shift);
    ahead_[1] >>= shift;
    taken_ = taken;
    return __byte_perm(x, words,
                       wants ? (index < kHalf ? 0x1054 : 0x1076) : 0x3210);
  }
  __device__ __forceinline__ bool AtEnd() const { return taken_ == count_; }

 private:
  static constexpr uint32_t kHalf = 32;

  // Bytes are joined when they are needed, so that nobody waits for them here.
  __device__ __forceinline__ void Load() {
    const uint32_t one = min(next_, last_), two = min(next_ + 2 * kHalf, last_);
    bytes_.Await(two + 2);
    loaded_[0] = bytes_.Byte(one), loaded_[1] = bytes_.Byte(one + 1);
    loaded_[2] = bytes_.Byte(two), loaded_[3] = bytes_.Byte(two + 1);
    next_ += 4 * kHalf;
  }
  // Word i in lane i % 32, of the higher half of 64 in the higher 16 bits.
  __device__ __forceinline__ uint32_t Loaded() const {
    return loaded_[0] | loaded_[1] << 8 | loaded_[2] << 16 | loaded_[3] << 24;
  }

  SectionBytes& bytes_;
  uint32_t next_;
  const uint32_t last_, count_, below_;
  uint32_t window_, ahead_[2] = {}, loaded_[4];
  uint32_t taken_ = 0;
  uint32_t behind_ = 0;  // Halves that were ever put behind the first window.
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_WORD_WINDOW_CUH_
