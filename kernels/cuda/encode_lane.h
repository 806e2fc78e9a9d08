// EncodeLane of kernels/device.h on CUDA.
#ifndef LATENTKV_KERNELS_CUDA_ENCODE_LANE_H_
#define LATENTKV_KERNELS_CUDA_ENCODE_LANE_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/basis_view.h"
#include "kernels/device.h"

namespace latentkv {

// As Device::OpenEncodeLane, on device `device`.
absl::StatusOr<std::unique_ptr<EncodeLane>> OpenCudaEncodeLane(
    int device, const BasisView& basis, uint64_t header_bytes,
    const std::function<bool()>& cancelled);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_CUDA_ENCODE_LANE_H_
