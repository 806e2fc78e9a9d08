// Encodes blocks in an engine's layout in device memory into the sections of
// their frames: one batch at a time.
#ifndef LATENTKV_KERNELS_CUDA_GROUP_ENCODER_H_
#define LATENTKV_KERNELS_CUDA_GROUP_ENCODER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/device_basis.h"
#include "kernels/cuda/device_encoder.h"
#include "kernels/cuda/encode_project.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/cuda/latent_encode.h"
#include "kernels/cuda/restore_product.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/cuda/rotary_cache.h"
#include "kernels/device.h"

namespace latentkv::cuda {

struct EncodeLimits {
  uint32_t blocks_max = 64;   // At most kPlacedBlocksMax.
  uint32_t rests_max = 1024;  // Tiles of 8 KiB for large latents.
  uint32_t header_bytes = 0;  // Of a frame, left free before its sections.
};

// What became of a batch; arrays of [groups][blocks] and [blocks] in pinned
// memory.
struct EncodeReport {
  const uint32_t* section_bytes;  // [groups][blocks]
  const float* losses;            // [groups][blocks] nats a token
  // [blocks] where each begins in the memory for frames
  const uint64_t* frames;
  // [blocks] EncodeFault: 0, or why the block is left to the CPU
  const uint32_t* faults;
};

// One thread at a time. Of the device that was current when it was made, which
// must be current in every call. Nothing waits for the device or allocates on
// it, but Encode at a step that was not seen before.
class GroupEncoder {
 public:
  // `basis`, `encoder` and `rotary` outlive it. ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<GroupEncoder>> Create(
      DeviceBasis* basis, const DeviceEncoder* encoder,
      const RotaryCache* rotary, const EncodeLimits& limits);

  // Encodes `blocks` at `step` into `room` (pinned or device memory, aligned to
  // 16 bytes) on `stream`: of each the room for a header, then its sections in
  // order, as a frame has them. The batch before must have passed. `parts` are
  // K and V of each layer. InvalidArgument for too many blocks, or positions
  // that the rotary tables do not reach.
  absl::Status Encode(absl::Span<const RestoreBlock> blocks,
                      absl::Span<const DevicePart> parts, float step,
                      LossChannels measured, uint8_t* room, uint64_t room_bytes,
                      cudaStream_t stream);

  // Of the last batch, when `stream` has passed.
  EncodeReport report() const;

  // Of device memory.
  uint64_t bytes() const { return bytes_; }

 private:
  GroupEncoder(DeviceBasis* basis, const DeviceEncoder* encoder,
               const RotaryCache* rotary, const EncodeLimits& limits)
      : basis_(*basis), encoder_(*encoder), rotary_(*rotary), limits_(limits) {}
  absl::Status Allocate();
  absl::Status MakeMaps();
  // Of a batch, into host memory; what they take goes over in Upload.
  absl::Status TakeBlocks(absl::Span<const RestoreBlock> blocks);
  absl::Status TakeModels();
  absl::Status Upload(cudaStream_t stream);
  absl::Status Begin(absl::Span<const RestoreBlock> blocks,
                     absl::Span<const DevicePart> parts, float step,
                     cudaStream_t stream);
  // Of a group, in order.
  absl::Status FormGroup(uint32_t group, cudaStream_t stream);
  absl::Status ProjectGroup(uint32_t group, cudaStream_t stream);
  absl::Status MeasureGroup(uint32_t group, LossChannels measured,
                            cudaStream_t stream);
  absl::Status Finish(uint8_t* room, uint64_t room_bytes, cudaStream_t stream);
  ProductParams Product(uint32_t group) const;
  ProductMaps Maps(uint32_t group) const {
    return {feature_map_, latent_map_, rest_map_, basis_.groups()[group].map};
  }
  // Channels of the group's tiles.
  uint64_t Stride(uint32_t group) const {
    return uint64_t{basis_.groups()[group].tile_count} * kTileChannels;
  }
  size_t Section(uint32_t group) const { return size_t{group} * blocks_; }

  DeviceBasis& basis_;
  const DeviceEncoder& encoder_;
  const RotaryCache& rotary_;
  const EncodeLimits limits_;
  uint32_t multiprocessors_ = 0;
  uint64_t bytes_ = 0;
  uint32_t unit_stride_ = 0;  // Tokens in whole boxes.

  // Of the batch.
  MirroredArray<uint32_t> first_tokens_, tokens_;
  MirroredArray<TokenSlot> slots_;
  MirroredArray<DevicePart> parts_;
  MirroredArray<DeviceRotary> rotaries_;
  MirroredArray<CodingGroup> coding_;
  MirroredArray<int32_t> known_sinks_;    // [groups][blocks]
  MirroredArray<uint32_t> first_layers_;  // [groups + 1]
  DeviceArray<int8_t> features_, latents_, rests_;
  DeviceArray<uint8_t> residuals_;  // Of one group.
  DeviceArray<float> units_;        // The same.
  DeviceArray<float2> energies_;    // The same.
  DeviceArray<float> partial_losses_, zeros_;
  DeviceArray<BlockPlan> plans_, again_, loss_plans_;
  DeviceArray<unsigned long long> exact_;  // [groups][blocks]
  DeviceArray<uint8_t> predicted_, sinks_, shifts_, sections_;
  // [groups][blocks * kBlockTokens]
  DeviceArray<uint32_t> own_sums_, inherited_sums_;
  DeviceArray<uint32_t> inherited_totals_, has_rests_, rest_count_,
      again_counts_;
  DeviceArray<uint16_t> rest_tiles_;  // [groups][blocks][kRankTilesMax]
  DeviceArray<uint64_t> section_offsets_;
  // What is reported.
  MirroredArray<uint32_t> section_bytes_, faults_;
  MirroredArray<float> losses_;
  MirroredArray<uint64_t> frames_;
  CUtensorMap feature_map_, latent_map_, rest_map_;
  // Of each group, whose residuals are as wide as its tiles.
  std::vector<CUtensorMap> residual_maps_;

  uint32_t blocks_ = 0;
  float step_ = 0;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_GROUP_ENCODER_H_
