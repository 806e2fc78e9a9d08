// Sections that one warp brings over from the host's memory while another
// decodes them.
#ifndef LATENTKV_KERNELS_CUDA_SECTION_BYTES_CUH_
#define LATENTKV_KERNELS_CUDA_SECTION_BYTES_CUH_

#include <cstdint>

#include "kernels/cuda/hopper.cuh"

namespace latentkv::cuda {

// What the two warps of a section share, in shared memory; `there` is 0 before
// a section.
struct SectionTeam {
  uint32_t there;  // Bytes that have come.
  // Whether the checksum is right, behind the first Meet of a section.
  uint32_t sound;
};

// Both warps of team `team` come here before either goes on.
__device__ inline void Meet(uint32_t team) {
  asm volatile("bar.sync %0, 64;" ::"r"(team + 1) : "memory");
}

// A section's bytes in device memory. Await is for whole warps, and comes
// before what it waits for is read.
class SectionBytes {
 public:
  // `team` is null if all are there.
  __device__ __forceinline__ SectionBytes(const uint8_t* bytes,
                                          const SectionTeam* team)
      : bytes_(bytes),
        team_(team == nullptr ? 0 : SharedAddress(&team->there)),
        there_(team == nullptr ? ~0u : 0) {}

  // Until bytes [0, count) are there; each lane may ask for as many as the
  // section has.
  __device__ __forceinline__ void Await(uint32_t count) {
    while (__any_sync(~0u, count > there_)) {
      // Atomic, as it is told: what checks for races knows no other.
      uint32_t there = 0;
      if (threadIdx.x % 32 == 0) {
        asm volatile("atom.acquire.cta.shared::cta.or.b32 %0, [%1], 0;"
                     : "=r"(there)
                     : "r"(team_)
                     : "memory");
      }
      __syncwarp();
      there_ = __shfl_sync(~0u, there, 0);
    }
  }
  __device__ __forceinline__ const uint8_t* data() const { return bytes_; }
  // Volatile, to stay behind Await.
  __device__ __forceinline__ uint32_t Byte(uint32_t at) const {
    uint32_t value;
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(value) : "l"(bytes_ + at));
    return value;
  }
  // They begin anywhere.
  __device__ __forceinline__ uint32_t Word16(uint32_t at) const {
    return Byte(at) | Byte(at + 1) << 8;
  }
  __device__ __forceinline__ uint32_t Word32(uint32_t at) const {
    return Word16(at) | Word16(at + 2) << 16;
  }

 private:
  const uint8_t* const bytes_;
  const uint32_t team_;  // Its address.
  uint32_t there_;
};

// Copies `bytes` bytes and tells the team as they come; both are aligned to 16,
// and have room up to a multiple of 16.
__device__ inline void FetchSection(const uint8_t* pinned, uint32_t bytes,
                                    uint8_t* to, SectionTeam* team,
                                    uint32_t lane) {
  constexpr uint32_t kOnTheWay = 4, kWarp = 32;  // Of 16 bytes, for each lane.
  const uint32_t count = (bytes + 15) / 16;
  const uint4* from = reinterpret_cast<const uint4*>(pinned);
  for (uint32_t first = 0; first < count; first += kOnTheWay * kWarp) {
    uint4 values[kOnTheWay];
#pragma unroll
    for (uint32_t i = 0; i < kOnTheWay; ++i) {
      const uint32_t at = first + i * kWarp + lane;
      if (at < count) values[i] = __ldcs(from + at);
    }
#pragma unroll
    for (uint32_t i = 0; i < kOnTheWay; ++i) {
      const uint32_t at = first + i * kWarp + lane;
      if (at < count) reinterpret_cast<uint4*>(to)[at] = values[i];
    }
    __syncwarp();
    const uint32_t there = min(bytes, (first + kOnTheWay * kWarp) * 16);
    if (lane == 0) {
      asm volatile("red.release.cta.shared::cta.max.u32 [%0], %1;" ::"r"(
                       SharedAddress(&team->there)),
                   "r"(there)
                   : "memory");
    }
  }
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_SECTION_BYTES_CUH_
