#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/latent_encode.h"
#include "kernels/cuda/load_value.cuh"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kWarp = 32, kWarps = 16, kThreads = kWarp * kWarps;
// Every state of the coder lies in [2^16, 2^32).
constexpr uint32_t kStart = 1u << 16;
constexpr uint32_t kHeaderBytes = 8, kEscapeBytes = 6,
                   kStateBytes = kWarp * sizeof(uint32_t);
constexpr uint32_t kActivityPrior = 4u << kActivityBits, kActivityDecay = 3;
constexpr uint32_t kStoredSinks = 1, kPredicted = 4;
// The words of sixteen rows at most.
constexpr uint32_t kLookBytesMax =
    kContextRows * kBlockTokens * sizeof(uint16_t);

// An escape before its place is known.
struct alignas(8) Escape {
  uint32_t place;
  int32_t latent;
};

// Of a class's symbols. One more than there are, so that a symbol's places in
// all classes lie in different banks.
constexpr uint32_t kClassStride = 257;

struct Shared {
  // frequency | start << 16, and 2^32 / frequency.
  uint2 ranges[kLatentClasses * kClassStride];
  uint8_t magnitude_max[kLatentClasses];
};
static_assert(sizeof(Shared) <= 227 * 1024);

__device__ void LoadTables(const CodingParams& params, Shared* shared) {
  for (uint32_t i = threadIdx.x; i < kLatentClasses * 256; i += kThreads) {
    const uint32_t range = params.ranges[i], frequency = range & 0xffff;
    const uint32_t inverse =
        frequency < 2 ? ~0u
                      : static_cast<uint32_t>((uint64_t{1} << 32) / frequency);
    shared->ranges[i / 256 * kClassStride + i % 256] = {range, inverse};
  }
  for (uint32_t i = threadIdx.x; i < kLatentClasses; i += kThreads)
    shared->magnitude_max[i] = params.magnitude_max[i];
  __syncthreads();
}

// Of an address in shared memory, which has 32 bits. The tables are written
// before any is read, and not again.
__device__ __forceinline__ uint32_t SharedByte(uint32_t address) {
  uint32_t value;
  asm("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint2 SharedPair(uint32_t address) {
  uint2 value;
  asm("ld.shared.v2.u32 {%0, %1}, [%2];"
      : "=r"(value.x), "=r"(value.y)
      : "r"(address));
  return value;
}

__device__ __forceinline__ void Put16(uint8_t* to, uint32_t value) {
  to[0] = value, to[1] = value >> 8;
}

template <DType kDType>
__device__ __forceinline__ Stored<kDType> ValueAt(const CodingParams& params,
                                                  uint32_t part, uint32_t block,
                                                  uint32_t token, uint32_t head,
                                                  uint32_t dim) {
  const DevicePart& pages = params.parts[part];
  const TokenSlot slot = params.slots[size_t{block} * kBlockTokens + token];
  return *reinterpret_cast<const Stored<kDType>*>(
      pages.base + slot.page * pages.page + slot.offset * pages.token +
      head * pages.head + dim * pages.dim);
}

// What is rare is out of line. A token's values as the engine holds them, by a
// warp.
template <DType kDType>
__device__ __noinline__ void PutToken(const CodingParams& params,
                                      uint32_t first_part, uint32_t last_part,
                                      uint32_t block, uint32_t token,
                                      uint8_t* to) {
  using Value = Stored<kDType>;
  for (uint32_t part = first_part; part < last_part; ++part) {
    const uint32_t dims = params.layers[part / 2].head_dim,
                   count = params.layers[part / 2].kv_heads * dims;
    for (uint32_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
      const Value value =
          ValueAt<kDType>(params, part, block, token, i / dims, i % dims);
      for (uint32_t b = 0; b < sizeof(Value); ++b)
        to[i * sizeof(Value) + b] = value >> 8 * b;
    }
    to += count * sizeof(Value);
  }
}

// As WriteSinks of codec/sinks.h.
template <DType kDType>
__device__ __noinline__ void PutSinks(const CodingParams& params,
                                      uint32_t first_part, uint32_t last_part,
                                      uint32_t block, uint8_t* to) {
  const uint32_t lane = threadIdx.x % kWarp;
  for (uint32_t part = first_part; part < last_part; ++part) {
    const uint32_t heads = params.layers[part / 2].kv_heads,
                   dims = params.layers[part / 2].head_dim;
    for (uint32_t i = 0; i < kSinkTokens * heads;
         ++i, to += sizeof(float) + dims) {
      const auto value = [&](uint32_t d) {
        return ToFloat<kDType>(
            ValueAt<kDType>(params, part, block, i / heads, i % heads, d));
      };
      float largest = 0;
      for (uint32_t d = lane; d < dims; d += kWarp)
        largest = fmaxf(largest, fabsf(value(d)));
      for (int apart = 16; apart > 0; apart /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
      const float scale = __fdiv_rn(largest, 127);
      for (uint32_t d = lane; d < dims; d += kWarp) {
        const float q = scale > 0 ? rintf(__fdiv_rn(value(d), scale)) : 0;
        to[sizeof(float) + d] = static_cast<int8_t>(fminf(fmaxf(q, -127), 127));
      }
      if (lane < sizeof(float)) to[lane] = __float_as_uint(scale) >> 8 * lane;
    }
  }
}

// Latents of a lane's eight symbols, the first of which comes last in the
// section: bit i of `mine` says that symbol i escapes. Symbol i is at row row -
// i / 2 and half 1 - i % 2.
__device__ __noinline__ void PutEscapes(uint32_t mine, uint4 latents,
                                        uint32_t row, Escape* to) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t pairs[4] = {latents.x, latents.y, latents.z, latents.w};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t here = __ballot_sync(~0u, mine >> i & 1);
    if (mine >> i & 1) {
      const int32_t latent = static_cast<int16_t>(pairs[i / 2] >> 16 * (i % 2));
      to[__popc(here & ~((1u << lane) - 1)) - 1] = {
          (row - i / 2) * kBlockTokens + (1 - i % 2) * kWarp + lane, latent};
    }
    to += __popc(here);
  }
}

// One section, by a warp. Token t of half h is 32 h + lane. It grows from the
// end of its room, which is what the coder writes last to first; escapes wait
// at the room's beginning.
template <DType kDType>
class SectionEncoder {
 public:
  __device__ __forceinline__ SectionEncoder(const CodingParams& params,
                                            const Shared& shared,
                                            uint32_t group, uint32_t block)
      : params_(params),
        shared_(static_cast<uint32_t>(__cvta_generic_to_shared(&shared))),
        group_(params.group[group]),
        lane_(threadIdx.x % kWarp),
        block_(block),
        section_(size_t{group} * params.blocks + block),
        looks_((group_.live + kContextRows - 1) / kContextRows),
        shifts_(params.shifts + group_.shifts +
                size_t{block} * looks_ * kBlockTokens),
        room_(params.sections + group_.sections + block * group_.section_room) {
  }

  __device__ __forceinline__ void Run() {
    if (params_.faults[block_] != 0) return;
    Contexts();
    __syncwarp();
    uint8_t* at = room_ + group_.section_room;
    if (!Code(&at) || !Prefix(&at)) {
      if (lane_ == 0) atomicOr(params_.faults + block_, kEncodeRoom);
      return;
    }
    if (lane_ != 0) return;
    params_.section_bytes[section_] = room_ + group_.section_room - at;
    params_.section_offsets[section_] = at - params_.sections;
  }

 private:
  // Sixteen latents of a token, low bytes and rests.
  struct Latents {
    uint32_t low[4], high[4];
    // `j` is known to the compiler.
    __device__ __forceinline__ int32_t At(uint32_t j) const {
      return static_cast<int8_t>(low[j / 4] >> 8 * (j % 4)) +
             2 * static_cast<int8_t>(high[j / 4] >> 8 * (j % 4));
    }
  };
  __device__ __forceinline__ Latents Load(uint32_t row, uint32_t half) const {
    const uint32_t token = half * kWarp + lane_;
    const uint4 low = *reinterpret_cast<const uint4*>(
        params_.latents +
        (size_t{block_} * kBlockTokens + token) * params_.latent_stride +
        group_.column + row);
    uint4 high = {};
    const uint32_t rest =
        params_.rest_tiles[section_ * kRankTilesMax + row / kRankTile];
    if (rest != kNoRest && rest != kZeroRest) {
      high = *reinterpret_cast<const uint4*>(
          params_.rests + (size_t{rest} * kBlockTokens + token) * kRankTile +
          row % kRankTile);
    }
    return {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
  }
  __device__ __forceinline__ uint4 Classes(uint32_t row) const {
    return __ldg(reinterpret_cast<const uint4*>(group_.model.classes + row));
  }
  __device__ static __forceinline__ uint32_t Shifted(uint32_t row_class,
                                                     int shift) {
    return min(max(static_cast<int>(row_class) + shift, 0),
               static_cast<int>(kLatentClasses) - 1);
  }

  // Forwards: what activity does to the classes of every token, how many rows
  // there are, and escapes.
  __device__ __forceinline__ void Contexts() {
    int shifts[2] = {};
    uint32_t activities[2] = {}, used = 0, escapes = 0;
    for (uint32_t look = 0; look < looks_; ++look) {
      const uint32_t row = look * kContextRows;
      const uint4 four = Classes(row);
      const uint32_t classes[4] = {four.x, four.y, four.z, four.w};
      uint32_t magnitudes[2] = {};
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const Latents latents = Load(row, h);
#pragma unroll
        for (uint32_t j = 0; j < kContextRows; ++j) {
          const uint32_t magnitude = abs(latents.At(j));
          const uint32_t limit =
              Limit(Shifted(classes[j / 4] >> 8 * (j % 4) & 255, shifts[h]));
          const bool escapes_here = magnitude > limit;
          magnitudes[h] += escapes_here ? kMagnitudeMax + 1 : magnitude;
          escapes += escapes_here;
          if (magnitude != 0) used = row + j + 1;
        }
        shifts_[look * kBlockTokens + h * kWarp + lane_] =
            shifts[h] + static_cast<int>(kClassShiftMax);
      }
      if (row + kContextRows <= group_.live)
        Look(look, magnitudes, activities, shifts);
    }
    used_ = __reduce_max_sync(~0u, used);
    escapes_ = __reduce_add_sync(~0u, escapes);
  }

  __device__ __forceinline__ void Look(uint32_t look,
                                       const uint32_t (&magnitudes)[2],
                                       uint32_t (&activities)[2],
                                       int (&shifts)[2]) const {
    const uint4* thresholds = reinterpret_cast<const uint4*>(
        group_.model.thresholds + look * kActivityThresholds);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      activities[h] +=
          (magnitudes[h] << kActivityBits) - (activities[h] >> kActivityDecay);
      shifts[h] = -static_cast<int>(kClassShiftMax);
    }
#pragma unroll
    for (uint32_t i = 0; i < kActivityThresholds / 4; ++i) {
      const uint4 four = __ldg(thresholds + i);
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t activity = activities[h] + kActivityPrior;
        shifts[h] += (activity >= four.x) + (activity >= four.y) +
                     (activity >= four.z) + (activity >= four.w);
      }
    }
  }

  __device__ __forceinline__ uint32_t Limit(uint32_t c) const {
    return SharedByte(shared_ + sizeof(uint2) * kLatentClasses * kClassStride +
                      c);
  }

  // Backwards: the words before `at`, then the states before them. False if
  // they do not fit the room.
  __device__ __forceinline__ bool Code(uint8_t** at) {
    uint8_t* const least =
        room_ + size_t{escapes_} * sizeof(Escape) + kLookBytesMax + kStateBytes;
    if (least > *at) return false;
    uint16_t* words = reinterpret_cast<uint16_t*>(*at);
    uint32_t x = kStart;
    Escape* escapes = reinterpret_cast<Escape*>(room_);
    for (uint32_t look = (used_ + kContextRows - 1) / kContextRows;
         look-- > 0;) {
      if (reinterpret_cast<uint8_t*>(words) < least) return false;
      const uint32_t row = look * kContextRows;
      const uint4 four = Classes(row);
      uint32_t classes[4] = {four.x, four.y, four.z, four.w};
      Latents latents[2] = {Load(row, 0), Load(row, 1)};
      int shifts[2];
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        shifts[h] = shifts_[look * kBlockTokens + h * kWarp + lane_] -
                    static_cast<int>(kClassShiftMax);
      }
      // Not unrolled, for the instruction cache: the last four rows are taken,
      // and the others move up.
#pragma unroll 1
      for (uint32_t i = 4; i-- > 0;) {
        FourRows(row + 4 * i, classes[3], latents, shifts, &x, &words,
                 &escapes);
        classes[3] = classes[2], classes[2] = classes[1],
        classes[1] = classes[0];
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
#pragma unroll
          for (uint32_t w = 3; w > 0; --w) {
            latents[h].low[w] = latents[h].low[w - 1];
            latents[h].high[w] = latents[h].high[w - 1];
          }
        }
      }
    }
    uint16_t* state = words - kStateBytes / sizeof(uint16_t) + 2 * lane_;
    state[0] = x, state[1] = x >> 16;
    *at = reinterpret_cast<uint8_t*>(words) - kStateBytes;
    return true;
  }

  // Rows [row, row + 4) as far as they are used, the last four of `latents`.
  // What no state is needed for comes first, so that the chain of states waits
  // for nothing else.
  __device__ __forceinline__ void FourRows(uint32_t row, uint32_t classes,
                                           const Latents (&latents)[2],
                                           const int (&shifts)[2],
                                           uint32_t* state, uint16_t** words,
                                           Escape** escapes) const {
    uint2 ranges[8];
    uint32_t mine = 0, pairs[4];
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t j = 3 - i / 2, h = 1 - i % 2;
      const uint32_t c = Shifted(classes >> 8 * j & 255, shifts[h]);
      const int32_t q = latents[h].At(12 + j);
      const bool escape = static_cast<uint32_t>(abs(q)) > Limit(c);
      const uint32_t symbol = escape  ? kEscapeSymbol
                              : q < 0 ? -2 * q - 1
                                      : 2 * q;
      ranges[i] =
          SharedPair(shared_ + sizeof(uint2) * (c * kClassStride + symbol));
      mine |= uint32_t{escape} << i;
      pairs[i / 2] = i % 2 == 0 ? q & 0xffff : pairs[i / 2] | q << 16;
    }
    if (__any_sync(~0u, mine != 0)) {
      PutEscapes(mine, {pairs[0], pairs[1], pairs[2], pairs[3]}, row + 3,
                 *escapes);
      *escapes += __reduce_add_sync(~0u, __popc(mine));
    }
    uint32_t x = *state;
    const uint32_t below = (1u << lane_) - 1;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      if (row + 3 - i / 2 >= used_) continue;
      const uint32_t frequency = ranges[i].x & 0xffff;
      const bool emits = x >> (32 - kProbabilityBits) >= frequency;
      const uint32_t emitting = __ballot_sync(~0u, emits);
      *words -= __popc(emitting);
      if (emits) (*words)[__popc(emitting & below)] = x;
      x = emits ? x >> 16 : x;
      // One too few at most.
      uint32_t quotient = __umulhi(x, ranges[i].y),
               rest = x - quotient * frequency;
      const bool more = rest >= frequency;
      quotient += more;
      rest -= more ? frequency : 0;
      x = (quotient << kProbabilityBits) + rest + (ranges[i].x >> 16);
    }
    *state = x;
  }

  // What comes before the states, which begin at `at`. False if it does not
  // fit.
  __device__ __forceinline__ bool Prefix(uint8_t** at) const {
    const unsigned long long exact = params_.exact[section_];
    const uint32_t count = __popcll(exact), sinks = params_.sinks[section_];
    const uint64_t values = uint64_t{count} * group_.exact_token_bytes;
    const uint64_t stored = sinks == kStoredSinks ? group_.sink_bytes : 0;
    const uint64_t bytes = kHeaderBytes + count + values + stored +
                           uint64_t{escapes_} * kEscapeBytes;
    const uint8_t* least = room_ + size_t{escapes_} * sizeof(Escape);
    if (*at < least || static_cast<uint64_t>(*at - least) < bytes) return false;
    uint8_t* to = *at - bytes;
    *at = to;
    if (lane_ == 0) {
      Put16(to, used_);
      to[2] = sinks | (params_.predicted[section_] != 0 ? kPredicted : 0);
      to[3] = count;
      Put16(to + 4, escapes_);
      Put16(to + 6, escapes_ >> 16);
    }
    to += kHeaderBytes;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      const uint32_t token = h * kWarp + lane_;
      if (exact >> token & 1)
        to[__popcll(exact & ((1ull << token) - 1))] = token;
    }
    to += count;
    for (unsigned long long left = exact; left != 0; left &= left - 1) {
      PutToken<kDType>(params_, 2 * group_.first_layer, 2 * group_.last_layer,
                       block_, __ffsll(left) - 1, to);
      to += group_.exact_token_bytes;
    }
    if (stored != 0)
      PutSinks<kDType>(params_, 2 * group_.first_layer, 2 * group_.last_layer,
                       block_, to);
    to += stored;
    __syncwarp();
    for (uint32_t i = lane_; i < escapes_; i += kWarp) {
      const Escape escape =
          reinterpret_cast<const Escape*>(room_)[escapes_ - 1 - i];
      uint8_t* entry = to + i * kEscapeBytes;
      Put16(entry, escape.place);
      Put16(entry + 2, escape.place >> 16);
      Put16(entry + 4, escape.latent);
    }
    return true;
  }

  const CodingParams& params_;
  const uint32_t shared_;  // The address of Shared.
  const CodingGroup group_;
  const uint32_t lane_, block_;
  const size_t section_;
  const uint32_t looks_;
  uint8_t* const shifts_;
  uint8_t* const room_;
  uint32_t used_ = 0, escapes_ = 0;
};

template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1)
    CodingKernel(const __grid_constant__ CodingParams params) {
  extern __shared__ __align__(16) uint8_t memory[];
  Shared* shared = reinterpret_cast<Shared*>(memory);
  LoadTables(params, shared);
  const uint32_t count = params.groups * params.blocks;
  // Neighbouring sections go to different multiprocessors.
  for (uint32_t i = threadIdx.x / kWarp * gridDim.x + blockIdx.x; i < count;
       i += kWarps * gridDim.x) {
    SectionEncoder<kDType>(params, *shared, i / params.blocks,
                           i % params.blocks)
        .Run();
  }
}

}  // namespace

uint64_t SectionRoom(uint32_t live, uint32_t exact_token_bytes,
                     uint32_t sink_bytes) {
  constexpr uint64_t kExactTokens = 8;
  const uint64_t coded = uint64_t{live} * kBlockTokens;
  const uint64_t before = kHeaderBytes +
                          kExactTokens * (uint64_t{exact_token_bytes} + 1) +
                          sink_bytes;
  return (coded + before + kLookBytesMax + 2 * kStateBytes + 15) / 16 * 16;
}

absl::Status CodeSections(const CodingParams& params, DType dtype,
                          uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  const auto launch = [&](auto* kernel) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    if (error != cudaSuccess)
      return CudaStatus(error, "asking for shared memory");
    kernel<<<multiprocessors, kThreads, sizeof(Shared), stream>>>(params);
    return LaunchStatus("coding sections on the device");
  };
  switch (dtype) {
    case DType::kBf16:
      return launch(&CodingKernel<DType::kBf16>);
    case DType::kFp16:
      return launch(&CodingKernel<DType::kFp16>);
    case DType::kFp32:
      return launch(&CodingKernel<DType::kFp32>);
    case DType::kFp8E4M3:
      return launch(&CodingKernel<DType::kFp8E4M3>);
  }
  return absl::InvalidArgumentError("pages of an unknown type");
}

}  // namespace latentkv::cuda
