#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/coding_tables.cuh"
#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/latent_encode.h"
#include "kernels/cuda/packed_latents.cuh"
#include "kernels/cuda/section_values.cuh"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kWarps = 16, kThreads = kWarp * kWarps;
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

__device__ __forceinline__ void Put16(uint8_t* to, uint32_t value) {
  to[0] = value, to[1] = value >> 8;
}

// Latents of a lane's eight symbols, the first of which comes last in the
// section: bit i of `mine` says that symbol i escapes. Symbol i is at row row +
// 3 - i / 2 and half 1 - i % 2. `low` and `high` are the lane's at row `row` of
// half 0.
__device__ __noinline__ void PutEscapes(uint32_t mine, uint32_t symbols0,
                                        uint32_t symbols1, uint32_t row,
                                        const int8_t* low, const int8_t* high,
                                        uint64_t half_stride, Escape* to) {
  const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t j = 3 - i / 2, h = 1 - i % 2;
    const uint32_t here = __ballot_sync(~0u, mine >> i & 1);
    if (mine >> i & 1) {
      const int32_t symbol = (h == 0 ? symbols0 : symbols1) >> 8 * j & 255;
      int32_t latent = symbol % 2 == 0 ? symbol / 2 : -(symbol / 2) - 1;
      if (symbol == kEscapeSymbol)
        latent = low[h * half_stride + j] + 2 * high[h * kWarp * kRankTile + j];
      to[__popc(here >> lane) - 1] = {
          (row + j) * kBlockTokens + h * kWarp + lane, latent};
    }
    to += __popc(here);
  }
}

__device__ __forceinline__ uint32_t ShiftedClass(uint32_t row_class,
                                                 int shift) {
  return min(max(static_cast<int>(row_class) + shift, 0),
             static_cast<int>(kLatentClasses) - 1);
}
// The largest magnitude that is coded, of each of four rows. `limits` is the
// address of CodingTables::magnitude_max.
__device__ __noinline__ uint32_t DifferentLimits(uint32_t limits,
                                                 uint32_t classes, int shift) {
  uint32_t four = 0;
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j)
    four |= SharedByte(limits + ShiftedClass(classes >> 8 * j & 255, shift))
            << 8 * j;
  return four;
}

// One section, by a warp. Token t of half h is 32 h + lane. It grows from the
// end of its room, which is what the coder writes last to first; escapes wait
// at the room's beginning.
template <DType kDType>
class SectionEncoder {
 public:
  __device__ __forceinline__ SectionEncoder(const CodingParams& params,
                                            const CodingTables& shared,
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
  // kContextRows rows of a lane's two tokens.
  struct Rows {
    uint4 low[2];
    uint4 classes;
    uint32_t rest;  // Of their tile.
  };
  __device__ __forceinline__ Rows Load(uint32_t row) const {
    Rows rows;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h)
      rows.low[h] = *reinterpret_cast<const uint4*>(Low(row, h));
    rows.classes =
        __ldg(reinterpret_cast<const uint4*>(group_.model.classes + row));
    rows.rest = params_.rest_tiles[section_ * kRankTilesMax + row / kRankTile];
    return rows;
  }
  __device__ __forceinline__ static bool HasRest(uint32_t rest) {
    return rest != kNoRest && rest != kZeroRest;
  }
  __device__ __forceinline__ const int8_t* Low(uint32_t row,
                                               uint32_t half) const {
    return params_.latents +
           (size_t{block_} * kBlockTokens + half * kWarp + lane_) *
               params_.latent_stride +
           group_.column + row;
  }
  __device__ __forceinline__ const int8_t* High(uint32_t rest, uint32_t row,
                                                uint32_t half) const {
    return params_.rests +
           (size_t{rest} * kBlockTokens + half * kWarp + lane_) * kRankTile +
           row % kRankTile;
  }
  // Of four rows, whose classes are mostly the same.
  __device__ __forceinline__ uint32_t Limits(uint32_t classes,
                                             int shift) const {
    const uint32_t limits =
        shared_ + sizeof(uint2) * kLatentClasses * kClassStride;
    return classes == (classes & 255) * 0x01010101u
               ? SharedByte(limits + ShiftedClass(classes & 255, shift)) *
                     0x01010101u
               : DifferentLimits(limits, classes, shift);
  }

  // Forwards: what activity does to the classes of every token, how many rows
  // there are, and escapes.
  __device__ __forceinline__ void Contexts() {
    int shifts[2] = {};
    // Of the last four rows that are not all 0, where they begin and what.
    uint32_t activities[2] = {}, last_row = 0, last = 0, escapes = 0;
    Rows next = {};
    if (looks_ > 0) next = Load(0);
#pragma unroll 1
    for (uint32_t look = 0; look < looks_; ++look) {
      const uint32_t row = look * kContextRows;
      const Rows rows = next;
      if (look + 1 < looks_) next = Load(row + kContextRows);
      uint32_t magnitudes[2] = {};
      uint32_t either[4] = {};  // Of the two tokens.
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        uint4 high = {};
        if (HasRest(rows.rest))
          high = *reinterpret_cast<const uint4*>(High(rows.rest, row, h));
#pragma unroll
        for (uint32_t w = 0; w < 4; ++w) {
          const uint32_t low = Word(rows.low[h], w), rest = Word(high, w);
          const uint32_t magnitude = Magnitudes(low);
          // Bit 7 of those above their limit; a rest is above every limit.
          const uint32_t above = ((magnitude + 0x7f7f7f7fu -
                                   Limits(Word(rows.classes, w), shifts[h])) &
                                  0x80808080u) |
                                 NotZero(rest);
          const uint32_t count = __popc(above);
          magnitudes[h] = __dp4a(magnitude & ~((above >> 7) * 255), 0x01010101u,
                                 magnitudes[h] + count * (kMagnitudeMax + 1));
          escapes += count;
          either[w] |= low | rest;
        }
        shifts_[look * kBlockTokens + h * kWarp + lane_] =
            shifts[h] + static_cast<int>(kClassShiftMax);
      }
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) {
        if (either[w] != 0) last_row = row + 4 * w, last = either[w];
      }
      if (row + kContextRows <= group_.live)
        Look(look, magnitudes, activities, shifts);
    }
    used_ = __reduce_max_sync(
        ~0u, last == 0 ? 0 : last_row + (39 - __clz(last)) / 8);
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

  // Backwards: the words before `at`, then the states before them. False if
  // they do not fit the room.
  __device__ __forceinline__ bool Code(uint8_t** at) {
    const uint32_t least =
        (escapes_ * sizeof(Escape) + kLookBytesMax + kStateBytes) /
        sizeof(uint16_t);
    Coder coder = {kStart, static_cast<uint32_t>((*at - room_) / 2),
                   reinterpret_cast<Escape*>(room_)};
    if (least > coder.word) return false;
    const uint32_t looks = (used_ + kContextRows - 1) / kContextRows;
    Rows next = {};
    if (looks > 0) next = Load((looks - 1) * kContextRows);
#pragma unroll 1
    for (uint32_t look = looks; look-- > 0;) {
      if (coder.word < least) return false;
      const uint32_t row = look * kContextRows;
      const Rows rows = next;
      if (look > 0) next = Load(row - kContextRows);
      FourRows four[4];
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) four[w].classes = Word(rows.classes, w);
      int shifts[2];
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        shifts[h] = shifts_[look * kBlockTokens + h * kWarp + lane_] -
                    static_cast<int>(kClassShiftMax);
        uint4 high = {};
        if (HasRest(rows.rest))
          high = *reinterpret_cast<const uint4*>(High(rows.rest, row, h));
#pragma unroll
        for (uint32_t w = 0; w < 4; ++w) {
          // What has a rest escapes.
          four[w].symbols[h] = Zigzags(Word(rows.low[h], w)) |
                               (NotZero(Word(high, w)) >> 7) * 255;
        }
      }
      // Not unrolled, for the instruction cache: the last four rows are taken,
      // and the others move up.
#pragma unroll 1
      for (uint32_t i = 4; i-- > 0;) {
        const uint32_t first = row + 4 * i;
        if (first + 4 <= used_) {
          CodeRows<true>(first, four[3], shifts, rows.rest, &coder);
        } else if (first < used_) {
          CodeRows<false>(first, four[3], shifts, rows.rest, &coder);
        }
        four[3] = four[2], four[2] = four[1], four[1] = four[0];
      }
    }
    uint16_t* state = Words() + coder.word - kStateBytes / sizeof(uint16_t);
    state[2 * lane_] = coder.x, state[2 * lane_ + 1] = coder.x >> 16;
    *at = reinterpret_cast<uint8_t*>(state);
    return true;
  }

  // Byte j of a word is of row j.
  struct FourRows {
    uint32_t classes;
    uint32_t symbols[2];
  };
  struct Coder {
    uint32_t x;     // The lane's state.
    uint32_t word;  // The last that was written, from the room's beginning on.
    Escape* escapes;
  };
  __device__ __forceinline__ uint16_t* Words() const {
    return reinterpret_cast<uint16_t*>(room_);
  }

  // Rows [row, row + 4), or those of them that are used. What no state is
  // needed for comes first, so that the chain of states waits for nothing else.
  template <bool kAll>
  __device__ __forceinline__ void CodeRows(uint32_t row, const FourRows& four,
                                           const int (&shifts)[2],
                                           uint32_t rest, Coder* coder) const {
    uint2 ranges[8];
    uint32_t any = 0;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t j = 3 - i / 2, h = 1 - i % 2;
      const uint32_t c = ShiftedClass(four.classes >> 8 * j & 255, shifts[h]);
      ranges[i] = SharedPair(
          shared_ + sizeof(uint2) *
                        (c * kClassStride + (four.symbols[h] >> 8 * j & 255)));
      if (!kAll && row + j >= used_) ranges[i] = kNoSymbol;
      any |= ranges[i].x;
    }
    if (__any_sync(~0u, any & kEscapes)) {
      uint32_t mine = 0;
#pragma unroll
      for (uint32_t i = 0; i < 8; ++i)
        mine |= uint32_t{(ranges[i].x & kEscapes) != 0} << i;
      PutEscapes(mine, four.symbols[0], four.symbols[1], row, Low(row, 0),
                 HasRest(rest) ? High(rest, row, 0) : nullptr,
                 kWarp * params_.latent_stride, coder->escapes);
      coder->escapes += __reduce_add_sync(~0u, __popc(mine));
    }
    uint32_t x = coder->x, word = coder->word;
    const uint32_t below = (1u << lane_) - 1;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t frequency = ranges[i].x & kFrequency,
                     others = kProbabilityOne - frequency;
      const bool emits = x >> (32 - kProbabilityBits) >= frequency;
      const uint32_t emitting = __ballot_sync(~0u, emits);
      word -= __popc(emitting);
      if (emits) Words()[word + __popc(emitting & below)] = x;
      x = emits ? x >> 16 : x;
      // One too few at most.
      uint32_t quotient = __umulhi(x, ranges[i].y);
      if (x - quotient * frequency >= frequency) ++quotient;
      // quotient * kProbabilityOne, and what is left of x.
      x += quotient * others + (ranges[i].x >> 16);
    }
    coder->x = x, coder->word = word;
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
  const uint32_t shared_;  // The address of CodingTables.
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
  CodingTables* shared = reinterpret_cast<CodingTables*>(memory);
  LoadTables<kThreads>(params, shared);
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
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        sizeof(CodingTables));
    if (error != cudaSuccess)
      return CudaStatus(error, "asking for shared memory");
    kernel<<<multiprocessors, kThreads, sizeof(CodingTables), stream>>>(params);
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
