// The thread's CUDA device, while in scope.
#ifndef LATENTKV_TRANSPORT_NCCL_DEVICE_GUARD_H_
#define LATENTKV_TRANSPORT_NCCL_DEVICE_GUARD_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace latentkv {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&before_) == cudaSuccess && before_ == device) {
      before_ = -1;
    } else {
      cudaSetDevice(device);
    }
  }
  ~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;  // To be set again.
};

// Internal with CUDA's text.
inline absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_NCCL_DEVICE_GUARD_H_
