#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/restore_steps.h"
#include "kernels/cuda/store_value.cuh"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
// Before a section's exact tokens.
constexpr uint32_t kHeaderBytes = 8;
// kLatentSumMax of codec/latent_section.h
constexpr uint32_t kSumBound = (1 << 24) / 127;
constexpr uint32_t kAboveBound = 1u << 31;
constexpr uint32_t kStoredSinks = 1;

// A warp a token.
__global__ void FeatureKernel(const FeatureParams p) {
  const uint32_t token = (blockIdx.x * kThreads + threadIdx.x) / 32,
                 lane = threadIdx.x % 32;
  if (token >= p.blocks * kBlockTokens) return;
  const uint32_t per_block = p.history - 1 + kBlockTokens;
  const uint32_t* tokens = p.tokens + size_t{token / kBlockTokens} * per_block +
                           p.history - 1 + token % kBlockTokens;
  int8_t* to = p.features + size_t{token} * p.stride;
  for (uint32_t f = lane; f < p.stride; f += 32) {
    const uint32_t back = f / p.dims;
    const uint32_t id =
        back < p.history ? tokens[-static_cast<int32_t>(back)] : kNoToken;
    to[f] = id < p.vocabulary ? p.embedding[size_t{id} * p.dims + f % p.dims]
                              : int8_t{0};
  }
}

// A CTA of kBlockTokens threads a block.
__global__ void VerifyKernel(const VerifyParams p) {
  const uint32_t block = blockIdx.x, token = threadIdx.x;
  const size_t section = size_t{p.group} * p.blocks + block;
  const SectionState state = p.states[section];
  const uint32_t own = p.own_sums[section * kBlockTokens + token];
  uint32_t* total = p.inherited_totals + size_t{block} * kBlockTokens + token;
  const uint32_t before = p.group == 0 ? 0 : *total;
  bool stored = p.first_tokens[block] == 0 && token < kSinkTokens;
  for (uint32_t i = 0; i < state.exact_count && state.fault == kFaultNone;
       ++i) {
    stored |= p.sources[section].payload[kHeaderBytes + i] == token;
  }
  const bool above =
      (own & kAboveBound) != 0 ||
      (!stored && own + (state.predicted ? before : 0) >= kSumBound);
  *total = before + p.inherited_sums[section * kBlockTokens + token];
  const bool bounds = __syncthreads_or(above && state.fault == kFaultNone);
  if (token != 0) return;
  if (bounds) p.states[section].fault = kFaultBounds;
  const bool sound =
      state.fault == kFaultNone && !bounds && p.first_faults[block] == ~0u;
  if (!sound) p.first_faults[block] = min(p.first_faults[block], p.group);
  bool rests = state.rests;
  for (uint32_t g = 0; g < p.group && state.predicted; ++g)
    rests |= p.states[size_t{g} * p.blocks + block].rests != 0;
  const uint32_t flags = kPlanValid | (state.predicted ? kPlanPredicted : 0) |
                         (rests ? kPlanRests : 0);
  p.plans[block] = {state.rank_tiles, sound ? flags : 0, state.step,
                    p.first_tokens[block]};
}

__device__ float FloatAt(const uint8_t* bytes) {
  return __uint_as_float(bytes[0] | bytes[1] << 8 | bytes[2] << 16 |
                         uint32_t{bytes[3]} << 24);
}

// A CTA a block.
template <DType kDType>
__global__ void StoredKernel(const StoredParams p) {
  using Value = Stored<kDType>;
  const uint32_t block = blockIdx.x;
  if (p.first_faults[block] <= p.group) return;
  const size_t section = size_t{p.group} * p.blocks + block;
  const SectionState state = p.states[section];
  if (state.exact_count == 0 && state.sinks == 0) return;
  const SectionSource source = p.sources[section];
  const uint8_t* exact = source.payload + kHeaderBytes + state.exact_count;
  size_t exact_bytes = 0;
  for (uint32_t l = p.first_layer; l < p.last_layer; ++l) {
    const LayerShape& layer = p.layers[l];
    exact_bytes += size_t{layer.kv_heads} * (layer.dims[0] + layer.dims[1]) *
                   sizeof(Value);
  }
  // Where the pages have `head`; what they do not have goes nowhere.
  const auto store = [&](uint32_t part_index, uint32_t token, uint32_t head,
                         uint32_t dim, Value value) {
    const HeadRange held = p.layers[part_index / 2].held;
    if (head - held.first >= held.count) return;
    const DevicePart& part = p.parts[part_index];
    const TokenSlot slot = p.slots[size_t{block} * kBlockTokens + token];
    *reinterpret_cast<Value*>(
        part.base + slot.page * part.page + slot.offset * part.token +
        (head - held.first) * part.head + dim * part.dim) = value;
  };
  if (state.sinks != 0) {
    const uint8_t* from = state.sinks == kStoredSinks
                              ? exact + state.exact_count * exact_bytes
                              : p.known_sinks + (source.known_sinks - 1);
    for (uint32_t part = 2 * p.first_layer; part < 2 * p.last_layer; ++part) {
      const uint32_t heads = p.layers[part / 2].kv_heads,
                     dims = p.layers[part / 2].dims[part % 2];
      for (uint32_t i = threadIdx.x; i < kSinkTokens * heads * dims;
           i += kThreads) {
        const uint8_t* head = from + size_t{i / dims} * (sizeof(float) + dims);
        const float q = static_cast<int8_t>(head[sizeof(float) + i % dims]);
        store(part, i / dims / heads, i / dims % heads, i % dims,
              Convert<kDType>(__fmul_rn(FloatAt(head), q)));
      }
      from += size_t{kSinkTokens} * heads * (sizeof(float) + dims);
    }
    __syncthreads();
  }
  for (uint32_t e = 0; e < state.exact_count; ++e) {
    const uint32_t token = source.payload[kHeaderBytes + e];
    for (uint32_t part = 2 * p.first_layer; part < 2 * p.last_layer; ++part) {
      const uint32_t dims = p.layers[part / 2].dims[part % 2],
                     count = p.layers[part / 2].kv_heads * dims;
      for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
        Value value = 0;
        for (uint32_t b = 0; b < sizeof(Value); ++b)
          value |= Value{exact[i * sizeof(Value) + b]} << 8 * b;
        store(part, token, i / dims, i % dims, value);
      }
      exact += count * sizeof(Value);
    }
  }
}

template <DType kDType>
void Launch(const StoredParams& params, cudaStream_t stream) {
  StoredKernel<kDType><<<params.blocks, kThreads, 0, stream>>>(params);
}

}  // namespace

absl::Status MakeFeatures(const FeatureParams& params, cudaStream_t stream) {
  if (params.blocks == 0 || params.stride == 0) return absl::OkStatus();
  FeatureKernel<<<params.blocks * kBlockTokens * 32 / kThreads, kThreads, 0,
                  stream>>>(params);
  return LaunchStatus("looking features up on the device");
}

absl::Status VerifySections(const VerifyParams& params, cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  VerifyKernel<<<params.blocks, kBlockTokens, 0, stream>>>(params);
  return LaunchStatus("verifying sections on the device");
}

absl::Status WriteStored(const StoredParams& params, DType dtype,
                         cudaStream_t stream) {
  if (params.blocks == 0) return absl::OkStatus();
  switch (dtype) {
    case DType::kBf16:
      Launch<DType::kBf16>(params, stream);
      break;
    case DType::kFp16:
      Launch<DType::kFp16>(params, stream);
      break;
    case DType::kFp32:
      Launch<DType::kFp32>(params, stream);
      break;
    case DType::kFp8E4M3:
      Launch<DType::kFp8E4M3>(params, stream);
      break;
  }
  return LaunchStatus("writing stored values on the device");
}

}  // namespace latentkv::cuda
