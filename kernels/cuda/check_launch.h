// CUDA's errors as ours.
#ifndef LATENTKV_KERNELS_CUDA_CHECK_LAUNCH_H_
#define LATENTKV_KERNELS_CUDA_CHECK_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace latentkv::cuda {

// ResourceExhausted if memory ran out, Internal with CUDA's text otherwise.
// `what` was being done.
inline absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // It is told here, and not again by the next launch.
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

// Of the launch just made.
inline absl::Status LaunchStatus(absl::string_view what) {
  return CudaStatus(cudaGetLastError(), what);
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_CHECK_LAUNCH_H_
