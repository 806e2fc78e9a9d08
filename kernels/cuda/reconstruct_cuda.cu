#include "kernels/cuda/reconstruct_cuda.h"

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kTokensPerBlock = 8;
constexpr uint32_t kRanksStaged = 256;

// One thread a channel, kTokensPerBlock tokens; the latents of a stretch of ranks wait in shared memory.
__global__ void ReconstructKernel(const int16_t* latents, const int8_t* decoder, const float* mean,
                                  const float* row_scale, float step, uint32_t tokens, uint32_t rank,
                                  uint32_t channels, float* values) {
  __shared__ int staged[kRanksStaged][kTokensPerBlock];
  const uint32_t channel = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t first_token = blockIdx.y * kTokensPerBlock;
  int sums[kTokensPerBlock] = {};
  for (uint32_t first = 0; first < rank; first += kRanksStaged) {
    const uint32_t ranks = min(kRanksStaged, rank - first);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ranks * kTokensPerBlock; i += kThreads) {
      const uint32_t token = first_token + i / ranks, r = i % ranks;
      staged[r][i / ranks] = token < tokens ? latents[static_cast<size_t>(token) * rank + first + r] : 0;
    }
    __syncthreads();
    if (channel >= channels) continue;
    for (uint32_t r = 0; r < ranks; ++r) {
      int any = 0;
      for (uint32_t t = 0; t < kTokensPerBlock; ++t) any |= staged[r][t];
      if (any == 0) continue;
      const int weight = decoder[static_cast<size_t>(first + r) * channels + channel];
      for (uint32_t t = 0; t < kTokensPerBlock; ++t) sums[t] += staged[r][t] * weight;
    }
  }
  if (channel >= channels) return;
  const float scale = __fmul_rn(row_scale[channel], step);
  for (uint32_t t = 0; t < kTokensPerBlock && first_token + t < tokens; ++t) {
    values[static_cast<size_t>(first_token + t) * channels + channel] =
        __fmaf_rn(scale, __int2float_rn(sums[t]), mean[channel]);
  }
}

__device__ uint16_t Bf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// One thread an element; both of a pair read the other, which costs less than an exchange is worth here.
__global__ void ScatterKernel(const float* values, uint64_t stride, uint32_t kv_heads, uint32_t head_dim,
                              DeviceRotation rotation, uint8_t* memory, PageStrides strides, uint32_t tokens) {
  const uint64_t i = uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  const uint32_t per_token = kv_heads * head_dim;
  if (i >= uint64_t{tokens} * per_token) return;
  // Neighbouring threads take neighbouring addresses, whichever of token and dimension lies together.
  const bool tokens_inner = strides.token < strides.dim;
  const uint32_t token = tokens_inner ? i % tokens : i / per_token;
  const uint32_t channel = tokens_inner ? i / tokens : i % per_token;
  const uint32_t head = channel / head_dim, dim = channel % head_dim;
  const float* row = values + token * stride + static_cast<size_t>(head) * head_dim;
  float value = row[dim];
  if (dim < 2 * rotation.pairs) {
    const bool halves = rotation.pairing == RotaryPairing::kHalves;
    const uint32_t apart = halves ? rotation.pairs : 1;
    const bool second = halves ? dim >= rotation.pairs : dim % 2 == 1;
    const uint32_t pair = halves ? dim % rotation.pairs : dim / 2;
    const size_t at = static_cast<size_t>(token) * rotation.pairs + pair;
    const float turned = __fmul_rn(second ? row[dim - apart] : row[dim + apart], rotation.sine[at]);
    value = __fmaf_rn(value, rotation.cosine[at], second ? turned : -turned);
  }
  uint8_t* to = memory + int64_t{token} * strides.token + int64_t{head} * strides.head + int64_t{dim} * strides.dim;
  *reinterpret_cast<uint16_t*>(to) = Bf16(value);
}

absl::Status Launched(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

}  // namespace

absl::Status ReconstructOnDevice(const int16_t* latents, const int8_t* decoder, const float* mean,
                                 const float* row_scale, float step, uint32_t tokens, uint32_t rank, uint32_t channels,
                                 float* values, cudaStream_t stream) {
  if (tokens == 0 || channels == 0) return absl::OkStatus();
  const dim3 grid((channels + kThreads - 1) / kThreads, (tokens + kTokensPerBlock - 1) / kTokensPerBlock);
  ReconstructKernel<<<grid, kThreads, 0, stream>>>(latents, decoder, mean, row_scale, step, tokens, rank, channels,
                                                   values);
  return Launched("reconstructing on the device");
}

absl::Status ScatterBf16OnDevice(const float* values, uint64_t stride, uint32_t kv_heads, uint32_t head_dim,
                                 const DeviceRotation& rotation, uint8_t* memory, const PageStrides& strides,
                                 const TokenRun& run, cudaStream_t stream) {
  const uint64_t elements = uint64_t{run.count} * kv_heads * head_dim;
  if (elements == 0) return absl::OkStatus();
  DeviceRotation turn = rotation;
  if (turn.pairing == RotaryPairing::kNone) turn.pairs = 0;
  if (2 * uint64_t{turn.pairs} > head_dim) return absl::InvalidArgumentError("more pairs than a head has dimensions");
  uint8_t* first = memory + static_cast<int64_t>(run.page) * strides.page + int64_t{run.offset} * strides.token;
  const uint64_t blocks = (elements + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return absl::InvalidArgumentError("a run too long for one launch");
  ScatterKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(values, stride, kv_heads, head_dim, turn, first,
                                                                       strides, run.count);
  return Launched("scattering on the device");
}

}  // namespace latentkv
