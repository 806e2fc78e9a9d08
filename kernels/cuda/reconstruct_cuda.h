// The CUDA backend: latents to channels and channels to the engine's pages, on the caller's stream. Gives the bits of
// the CPU backends. Nothing here waits for the device; arrays are the caller's, in device memory, and must live until
// the stream has passed. All return Internal with CUDA's text if the launch fails.
#ifndef LATENTKV_KERNELS_CUDA_RECONSTRUCT_CUDA_H_
#define LATENTKV_KERNELS_CUDA_RECONSTRUCT_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/pages.h"

namespace latentkv {

// values[t][c] = fma(row_scale[c] * step, float(sum over r of latents[t][r] * decoder[r][c]), mean[c]): Reconstruct and
// Restore of kernels/reconstruct.h. `latents` [tokens][rank], `decoder` [rank][channels] not packed.
absl::Status ReconstructOnDevice(const int16_t* latents, const int8_t* decoder, const float* mean,
                                 const float* row_scale, float step, uint32_t tokens, uint32_t rank, uint32_t channels,
                                 float* values, cudaStream_t stream);

// How the keys of a layer are turned on their way to the pages; tables [tokens][pairs] as MakeRotaryTable gives them.
struct DeviceRotation {
  RotaryPairing pairing = RotaryPairing::kNone;
  uint32_t pairs = 0;
  const float* cosine = nullptr;
  const float* sine = nullptr;
};

// Rotates (Rotate of kernels/rotary.h) one of K or V of a layer, rounds it to bf16 to nearest even, and writes it into
// pages: element (t, head, dim) of `values`, values[t * stride + head * head_dim + dim], goes to token t of `run`, on
// from its first. `memory` and `strides` as in kernels/pages.h; strides in bytes, even.
absl::Status ScatterBf16OnDevice(const float* values, uint64_t stride, uint32_t kv_heads, uint32_t head_dim,
                                 const DeviceRotation& rotation, uint8_t* memory, const PageStrides& strides,
                                 const TokenRun& run, cudaStream_t stream);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_CUDA_RECONSTRUCT_CUDA_H_
