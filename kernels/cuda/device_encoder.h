// What writing needs of a basis beside reading, in device memory: encoders,
// weights and sensitivities of its groups.
#ifndef LATENTKV_KERNELS_CUDA_DEVICE_ENCODER_H_
#define LATENTKV_KERNELS_CUDA_DEVICE_ENCODER_H_

#include <cuda.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/basis_view.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/device_basis.h"

namespace latentkv::cuda {

struct EncoderGroup {
  // In the order of a product's factors (restore_product.h).
  DeviceArray<float> root_weight, unweigh, sensitivity;
  DeviceArray<float> column_scale;  // [rank in whole tiles]
  DeviceArray<int8_t> encoder;      // As ProjectMaps has it, over column_scale.
  CUtensorMap map;
};

// Immutable. Of the device that was current when it was made. Writes all heads:
// `basis` must have been made for all.
class DeviceEncoder {
 public:
  // Asks for the encoders of all groups, which takes seconds for a large basis,
  // on as many threads as there are cores or groups. `view` and `basis` are
  // used until it returns, but for view.live_rank, which is kept.
  // FailedPrecondition for a basis without an encoder, Unimplemented for one
  // whose weights do not say what its sensitivities need, ResourceExhausted;
  // Cancelled, within the time that one group takes, if `cancelled` says so.
  static absl::StatusOr<std::unique_ptr<DeviceEncoder>> Create(
      const BasisView& view, const DeviceBasis& basis,
      const std::function<bool()>& cancelled = [] { return false; });

  const std::vector<EncoderGroup>& groups() const { return groups_; }
  // Latents of `group` that are coded at `step`.
  uint32_t LiveRank(uint32_t group, float step) const {
    return live_rank_(group, step);
  }
  // Of each class, as LatentTables has them.
  const uint8_t* magnitude_max() const { return magnitude_max_.data(); }
  uint64_t bytes() const { return bytes_; }

 private:
  DeviceEncoder() = default;
  std::vector<EncoderGroup> groups_;
  DeviceArray<uint8_t> magnitude_max_;
  std::function<uint32_t(uint32_t, float)> live_rank_;
  uint64_t bytes_ = 0;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_DEVICE_ENCODER_H_
