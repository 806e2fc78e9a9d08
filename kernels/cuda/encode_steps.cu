#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/encode_steps.h"
#include "kernels/cuda/load_value.cuh"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
// kLatentSumMax of codec/latent_section.h
constexpr uint32_t kSumBound = (1 << 24) / 127;

// In one order, so that a block is encoded alike whenever it is.
template <typename T, uint32_t kCount>
__device__ T SumOf(T value, T* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (uint32_t half = kCount / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const T sum = shared[0];
  __syncthreads();
  return sum;
}

// A CTA a block. Those tokens are asked that GroupCodec::PredictionHelps asks:
// the last of each four, and no sinks.
__global__ void __launch_bounds__(kThreads)
    JudgeKernel(const PredictionParams p) {
  constexpr uint32_t kAsked = kBlockTokens / 4, kShares = kThreads / kAsked;
  __shared__ float2 energies[kShares][kAsked];
  const uint32_t block = blockIdx.x, asked = threadIdx.x % kAsked,
                 share = threadIdx.x / kAsked;
  float2 sum = {0, 0};
  for (uint32_t tile = share; tile < p.tile_count; tile += kShares) {
    const float2 energy =
        p.energies[(size_t{tile} * p.blocks + block) * kBlockTokens +
                   4 * asked + 3];
    sum.x += energy.x;
    sum.y += energy.y;
  }
  energies[share][asked] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  float with = 0, without = 0;
  for (uint32_t i = 0; i < kShares; ++i) {
    with += energies[i][asked].x;
    without += energies[i][asked].y;
  }
  // Logarithms: one token far beyond all others does not decide.
  constexpr float kLeast = 1e-30f;
  const bool counts = threadIdx.x < kAsked &&
                      4 * asked + 3 >= 2 * kSinkTokens - 1 && isfinite(with) &&
                      isfinite(without);
  float gain = counts ? logf((without + kLeast) / (with + kLeast)) : 0;
  for (int apart = 16; apart > 0; apart /= 2)
    gain += __shfl_xor_sync(~0u, gain, apart);
  if (threadIdx.x != 0) return;
  const bool helps = gain > 0;
  BlockPlan again = p.plans[block];
  again.flags = helps ? 0 : again.flags & kPlanValid;
  p.again[block] = again;
  p.predicted[block] = helps;
  if (helps) return;
  p.exact[block] = 0;
  atomicAdd(p.again_count, 1);
}

// A CTA of kBlockTokens threads a block.
__global__ void BoundKernel(const BoundParams p) {
  const uint32_t block = blockIdx.x, token = threadIdx.x;
  const size_t at = size_t{block} * kBlockTokens + token;
  const bool predicted = p.predicted[block] != 0, faulty = p.faults[block] != 0;
  const bool out =
      (p.exact[block] >> token & 1) ||
      p.own_sums[at] + (predicted ? p.inherited_totals[at] : 0) >= kSumBound;
  if (out) {
    int8_t* own = p.latents + at * p.latent_stride + p.column;
    for (uint32_t c = 0; c < p.own_tiles * kRankTile; c += 16)
      *reinterpret_cast<uint4*>(own + c) = {};
    for (uint32_t tile = 0; tile < p.own_tiles; ++tile) {
      const uint32_t rest = p.rest_tiles[size_t{block} * kRankTilesMax + tile];
      if (rest == kNoRest || rest == kZeroRest) continue;
      int8_t* high =
          p.rests + (size_t{rest} * kBlockTokens + token) * kRankTile;
      for (uint32_t c = 0; c < kRankTile; c += 16)
        *reinterpret_cast<uint4*>(high + c) = {};
    }
    atomicOr(p.exact + block, 1ull << token);
  } else {
    p.inherited_totals[at] += p.inherited_sums[at];
  }
  if (token != 0) return;
  bool rests = false;
  for (uint32_t g = 0; g <= p.group; ++g)
    rests |= p.has_rests[size_t{g} * p.blocks + block] != 0;
  const uint32_t valid = faulty ? 0 : kPlanValid | (rests ? kPlanRests : 0);
  p.loss_plans[block] = {p.own_tiles, valid, p.step, p.first_tokens[block]};
  p.next_plans[block] = {0, faulty ? 0 : valid | kPlanPredicted, p.step,
                         p.first_tokens[block]};
}

__global__ void PlanKernel(uint32_t blocks, float step,
                           const uint32_t* first_tokens, BlockPlan* plans,
                           uint32_t* rest_count) {
  const uint32_t block = blockIdx.x * kThreads + threadIdx.x;
  if (block == 0) *rest_count = 1;
  if (block < blocks)
    plans[block] = {0, kPlanValid | kPlanPredicted, step, first_tokens[block]};
}

// A CTA a block.
__global__ void LossKernel(const float* partial, uint32_t count, float scale,
                           float* losses) {
  __shared__ double sums[kThreads];
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads)
    sum += partial[size_t{blockIdx.x} * count + i];
  sum = SumOf<double, kThreads>(sum, sums);
  if (threadIdx.x == 0) losses[blockIdx.x] = static_cast<float>(scale * sum);
}

__device__ float FloatAt(const uint8_t* bytes) {
  return __uint_as_float(bytes[0] | bytes[1] << 8 | bytes[2] << 16 |
                         uint32_t{bytes[3]} << 24);
}

// A CTA a block and group. What SinksMatch of codec/sinks.h asks.
template <DType kDType>
__global__ void SinkKernel(const SinkParams p) {
  using Value = Stored<kDType>;
  constexpr float kEnergyMax = 1e-3f;
  __shared__ double sums[kThreads];
  const uint32_t block = blockIdx.x, group = blockIdx.y;
  const size_t section = size_t{group} * p.blocks + block;
  const bool first = p.first_tokens[block] == 0;
  bool match = first && p.known[section] >= 0;
  const uint8_t* from = p.known_sinks + (match ? p.known[section] : 0);
  for (uint32_t part = 2 * p.first_layers[group];
       part < 2 * p.first_layers[group + 1] && match; ++part) {
    const uint32_t heads = p.layers[part / 2].kv_heads,
                   dims = p.layers[part / 2].dims[part % 2];
    const DevicePart& pages = p.parts[part];
    double energy = 0, difference = 0;
    for (uint32_t i = threadIdx.x; i < kSinkTokens * heads * dims;
         i += kThreads) {
      const TokenSlot slot =
          p.slots[size_t{block} * kBlockTokens + i / dims / heads];
      const float value = ToFloat<kDType>(*reinterpret_cast<const Value*>(
          pages.base + slot.page * pages.page + slot.offset * pages.token +
          i / dims % heads * pages.head + i % dims * pages.dim));
      const uint8_t* head = from + size_t{i / dims} * (sizeof(float) + dims);
      const float error =
          value -
          FloatAt(head) * static_cast<int8_t>(head[sizeof(float) + i % dims]);
      energy += double{value} * value;
      difference += double{error} * error;
    }
    from += size_t{kSinkTokens} * heads * (sizeof(float) + dims);
    energy = SumOf<double, kThreads>(energy, sums);
    match = SumOf<double, kThreads>(difference, sums) <= kEnergyMax * energy;
  }
  if (threadIdx.x == 0) p.sources[section] = !first ? 0 : match ? 2 : 1;
}

__device__ uint64_t BytesOf(const PlaceParams& p, uint32_t group,
                            uint32_t block) {
  return p.section_bytes[size_t{group} * p.blocks + block];
}

// One CTA: a thread a block.
__global__ void PlaceKernel(const PlaceParams p) {
  __shared__ uint64_t ends[kPlacedBlocksMax];
  const uint32_t block = threadIdx.x;
  uint64_t bytes = 0;
  if (block < p.blocks && p.faults[block] == 0) {
    bytes = p.header_bytes;
    for (uint32_t g = 0; g < p.groups; ++g) bytes += BytesOf(p, g, block);
    bytes = (bytes + 15) / 16 * 16;
  }
  ends[block] = bytes;
  __syncthreads();
  for (uint32_t apart = 1; apart < blockDim.x; apart *= 2) {
    const uint64_t before = block >= apart ? ends[block - apart] : 0;
    __syncthreads();
    ends[block] += before;
    __syncthreads();
  }
  if (block >= p.blocks) return;
  p.frames[block] = ends[block] - bytes;
  if (ends[block] > p.room_bytes && bytes > 0) p.faults[block] |= kEncodeRoom;
}

// A CTA a section.
__global__ void CopyKernel(const CopyParams p) {
  const uint32_t block = blockIdx.x, group = blockIdx.y;
  if (p.placed.faults[block] != 0) return;
  const uint64_t bytes = BytesOf(p.placed, group, block);
  uint64_t at = p.placed.frames[block] + p.placed.header_bytes;
  for (uint32_t g = 0; g < group; ++g) at += BytesOf(p.placed, g, block);
  uint8_t* to = p.room + at;
  const uint8_t* from =
      p.sections + p.section_offsets[size_t{group} * p.placed.blocks + block];
  // Whole words of 16 bytes of the frame, and what is left at both ends. Words
  // of the section are read that begin up to three bytes before.
  uint64_t head = (16 - at % 16) % 16;
  head = min(bytes, head < 3 ? head + 16 : head);
  const uint64_t words = (bytes - head) / 16;
  for (uint64_t i = threadIdx.x; i < head; i += kThreads) to[i] = from[i];
  for (uint64_t i = head + words * 16 + threadIdx.x; i < bytes; i += kThreads)
    to[i] = from[i];
  const uint32_t shift = reinterpret_cast<uintptr_t>(from + head) % 4 * 8;
  const uint32_t* source =
      reinterpret_cast<const uint32_t*>(from + head - shift / 8);
  uint4* target = reinterpret_cast<uint4*>(to + head);
  for (uint64_t i = threadIdx.x; i < words; i += kThreads) {
    uint32_t w[5];
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) w[k] = source[4 * i + k];
    // Of the section still, as the shift takes bytes of it.
    w[4] = shift == 0 ? 0 : source[4 * i + 4];
    target[i] = {
        __funnelshift_r(w[0], w[1], shift), __funnelshift_r(w[1], w[2], shift),
        __funnelshift_r(w[2], w[3], shift), __funnelshift_r(w[3], w[4], shift)};
  }
}

}  // namespace

absl::Status JudgePredictions(const PredictionParams& params,
                              cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  JudgeKernel<<<params.blocks, kThreads, 0, stream>>>(params);
  return LaunchStatus("judging predictions on the device");
}

absl::Status BoundLatents(const BoundParams& params, cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  BoundKernel<<<params.blocks, kBlockTokens, 0, stream>>>(params);
  return LaunchStatus("bounding latents on the device");
}

absl::Status PlanFirst(uint32_t blocks, float step,
                       const uint32_t* first_tokens, BlockPlan* plans,
                       uint32_t* rest_count, cudaStream_t stream) {
  if (blocks == 0) return absl::OkStatus();
  PlanKernel<<<(blocks + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      blocks, step, first_tokens, plans, rest_count);
  return LaunchStatus("planning on the device");
}

absl::Status SumLosses(const float* partial, uint32_t blocks, uint32_t count,
                       float scale, float* losses, cudaStream_t stream) {
  if (blocks == 0) return absl::OkStatus();
  LossKernel<<<blocks, kThreads, 0, stream>>>(partial, count, scale, losses);
  return LaunchStatus("summing losses on the device");
}

absl::Status MatchSinks(const SinkParams& params, DType dtype,
                        cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  const dim3 grid(params.blocks, params.groups);
  switch (dtype) {
    case DType::kBf16:
      SinkKernel<DType::kBf16><<<grid, kThreads, 0, stream>>>(params);
      break;
    case DType::kFp16:
      SinkKernel<DType::kFp16><<<grid, kThreads, 0, stream>>>(params);
      break;
    case DType::kFp32:
      SinkKernel<DType::kFp32><<<grid, kThreads, 0, stream>>>(params);
      break;
    case DType::kFp8E4M3:
      SinkKernel<DType::kFp8E4M3><<<grid, kThreads, 0, stream>>>(params);
      break;
  }
  return LaunchStatus("matching sinks on the device");
}

absl::Status PlaceFrames(const PlaceParams& params, cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  PlaceKernel<<<1, (params.blocks + 31) / 32 * 32, 0, stream>>>(params);
  return LaunchStatus("placing frames on the device");
}

absl::Status CopySections(const CopyParams& params, cudaStream_t stream) {
  if (params.placed.blocks == 0) return absl::OkStatus();
  CopyKernel<<<dim3(params.placed.blocks, params.placed.groups), kThreads, 0,
               stream>>>(params);
  return LaunchStatus("copying sections on the device");
}

}  // namespace latentkv::cuda
