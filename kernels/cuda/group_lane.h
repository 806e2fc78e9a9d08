// GroupLane of kernels/device.h on CUDA.
#ifndef LATENTKV_KERNELS_CUDA_GROUP_LANE_H_
#define LATENTKV_KERNELS_CUDA_GROUP_LANE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/basis_view.h"
#include "kernels/device.h"

namespace latentkv {

// As Device::OpenGroupLane, on device `device`.
absl::StatusOr<std::unique_ptr<GroupLane>> OpenCudaGroupLane(
    int device, const BasisView& basis, absl::Span<const HeadRange> heads,
    const GroupLimits& limits);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_CUDA_GROUP_LANE_H_
