// DeviceLink over a communicator of two ranks.
#ifndef LATENTKV_TRANSPORT_NCCL_NCCL_LINK_H_
#define LATENTKV_TRANSPORT_NCCL_NCCL_LINK_H_

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "transport/handoff.h"
#include "transport/nccl/communicator.h"

namespace latentkv {

// A batch goes in one message; at 50 GB/s this takes 1.3 ms, beside which its
// acknowledgement is short.
inline constexpr size_t kStagingBytes = 64u << 20;

// `communicator` may be null, if there is none: then the link only copies to
// the host. FailedPrecondition without the device, InvalidArgument for a
// communicator that has not two ranks, ResourceExhausted without
// `staging_bytes` of device memory, which also bound a batch.
absl::StatusOr<std::unique_ptr<DeviceLink>> MakeNcclLink(
    std::unique_ptr<Communicator> communicator, int device,
    size_t staging_bytes = kStagingBytes);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_NCCL_NCCL_LINK_H_
