// Cosines and sines of positions, made on the host so that every backend turns
// by the same bits, kept on a device.
#ifndef LATENTKV_KERNELS_CUDA_ROTARY_CACHE_H_
#define LATENTKV_KERNELS_CUDA_ROTARY_CACHE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/geometry.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

// 8 bytes a position and pair: 8 MiB for 16384 positions of heads of 128. One
// thread at a time.
class RotaryCache {
 public:
  // A table for each of `layers` of `geometry`, which must outlive it.
  RotaryCache(const Geometry* geometry, std::vector<uint32_t> layers)
      : geometry_(*geometry),
        layers_(std::move(layers)),
        tables_(layers_.size()) {}

  // Positions below `positions` will do from now on. Waits for the device when
  // it grows, by halves at least.
  absl::Status Reach(uint32_t positions);
  uint32_t positions() const { return positions_; }
  std::vector<DeviceRotary> tables() const;
  uint64_t bytes() const;

 private:
  struct Table {
    DeviceArray<float> cosine, sine;
    uint32_t pairs = 0;
    float undo = 1;
  };
  const Geometry& geometry_;
  const std::vector<uint32_t> layers_;
  std::vector<Table> tables_;
  uint32_t positions_ = 0;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_ROTARY_CACHE_H_
