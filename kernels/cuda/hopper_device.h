// The one kind of device that these kernels are for.
#ifndef LATENTKV_KERNELS_CUDA_HOPPER_DEVICE_H_
#define LATENTKV_KERNELS_CUDA_HOPPER_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cuda_event.h"

namespace latentkv::cuda {

// Multiprocessors of the current device. Unimplemented if it is not of compute
// capability 9.0, which `what` needs.
inline absl::StatusOr<uint32_t> HopperMultiprocessors(absl::string_view what) {
  int device = 0, multiprocessors = 0, major = 0;
  absl::Status status =
      CudaStatus(cudaGetDevice(&device), "asking for the device");
  status.Update(
      CudaStatus(cudaDeviceGetAttribute(&multiprocessors,
                                        cudaDevAttrMultiProcessorCount, device),
                 "asking for multiprocessors"));
  status.Update(CudaStatus(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
      "asking for the compute capability"));
  if (!status.ok()) return status;
  if (major != 9)
    return absl::UnimplementedError(
        absl::StrCat(what, " on a device needs compute capability 9.0"));
  return multiprocessors;
}

// ResourceExhausted unless the current device has twice `bytes` free for
// `what`: the engine was there first.
inline absl::Status CheckRoom(absl::string_view what, uint64_t bytes) {
  size_t free = 0, total = 0;
  absl::Status status =
      CudaStatus(cudaMemGetInfo(&free, &total), "asking for free memory");
  if (!status.ok() || bytes <= free / 2) return status;
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " needs ", bytes >> 20, " MiB of device memory, of ",
                   free >> 20, " MiB that are free: leave the engine less"));
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_HOPPER_DEVICE_H_
