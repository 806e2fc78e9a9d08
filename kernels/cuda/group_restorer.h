// Restores groups of blocks into an engine's pages in device memory: one batch
// of blocks at a time.
#ifndef LATENTKV_KERNELS_CUDA_GROUP_RESTORER_H_
#define LATENTKV_KERNELS_CUDA_GROUP_RESTORER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/device_basis.h"
#include "kernels/cuda/restore_product.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/cuda/rotary_cache.h"
#include "kernels/device.h"

namespace latentkv::cuda {

// A block to restore.
struct RestoreBlock {
  // Its position, a multiple of kBlockTokens.
  uint32_t first_token = 0;
  absl::Span<const uint32_t> tokens;  // Of the chain up to its last.
  // Index among the basis's, of a chain's first block alone.
  int32_t known_sinks = -1;
  absl::Span<const TokenSlot> slots;  // [kBlockTokens] where its tokens go
};

struct RestoreLimits {
  uint32_t blocks_max = 256;
  // Of all sections of a batch.
  uint64_t payload_bytes_max = uint64_t{128} << 20;
  // Tiles of 8 KiB for large latents.
  uint32_t rests_max = 4096;
};

// One thread at a time. Of the device that was current when it was made, which
// must be current in every call. Arrays in the arguments of one call are used
// until that call returns, unless it says otherwise. Nothing waits for the
// device or allocates on it, but Add where a step was not seen before.
class GroupRestorer {
 public:
  // `basis` and `rotary` outlive it. ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<GroupRestorer>> Create(
      DeviceBasis* basis, const RotaryCache* rotary,
      const RestoreLimits& limits);

  // A new batch; the streams of the one before must have passed what it did.
  // `parts` are K and V of each layer. InvalidArgument for too many blocks, or
  // positions that the rotary tables do not reach.
  absl::Status Begin(absl::Span<const RestoreBlock> blocks,
                     absl::Span<const DevicePart> parts, cudaStream_t stream);

  // The sections of group `group`, the next in order: one for each block, in
  // `bytes` bytes from `payload` on, pinned host memory that stays as it is
  // until `stream` has passed. ResourceExhausted if the batch's bytes do not
  // fit.
  absl::Status Add(uint32_t group, const uint8_t* payload, uint64_t bytes,
                   absl::Span<const GroupSection> sections,
                   cudaStream_t stream);

  // Add and Decode of one group, done sooner: the kernel that decodes the
  // sections reads them from `payload`, which begins at a multiple of
  // kSectionAlignment and can be read up to one behind each section.
  // InvalidArgument for memory that is not so.
  absl::Status AddAndDecode(uint32_t group, const uint8_t* payload,
                            uint64_t bytes,
                            absl::Span<const GroupSection> sections,
                            cudaStream_t stream);

  // Decodes groups [first, last), which were added, on `stream`. Groups can be
  // decoded together.
  absl::Status Decode(uint32_t first, uint32_t last, cudaStream_t stream);
  // Restores a decoded group into its pages on `stream`. Groups in order, from
  // 0. A block with a fault is restored up to the group before it and then
  // never touched again.
  absl::Status Restore(uint32_t group, cudaStream_t stream);

  // Behind a Restore: copies, on `stream`, for every block the first group up
  // to that one that could not be restored
  // (~0: none) and why, a SectionFault.
  struct Outcome {
    uint32_t first_fault;
    uint32_t fault;
  };
  absl::Status Report(Outcome* pinned, cudaStream_t stream);

  // Of device memory.
  uint64_t bytes() const { return bytes_; }

 private:
  GroupRestorer(DeviceBasis* basis, const RotaryCache* rotary,
                const RestoreLimits& limits)
      : basis_(*basis), rotary_(*rotary), limits_(limits) {}
  absl::Status Allocate(uint32_t multiprocessors);
  // Room for the sections of a group in device memory, where their sources say
  // that they will be.
  absl::StatusOr<uint8_t*> Place(uint32_t group, uint64_t bytes,
                                 absl::Span<const GroupSection> sections);
  absl::Status DecodeFrom(const uint8_t* pinned, uint8_t* payload,
                          uint32_t first, uint32_t last, cudaStream_t stream);

  DeviceBasis& basis_;
  const RotaryCache& rotary_;
  const RestoreLimits limits_;
  uint32_t multiprocessors_ = 0;
  uint64_t bytes_ = 0;
  DeviceArray<int8_t> latents_, rests_, features_;
  DeviceArray<uint32_t> own_sums_, inherited_sums_, inherited_totals_;
  DeviceArray<uint16_t> rest_tiles_;
  DeviceArray<BlockPlan> plans_;
  DeviceArray<SectionState> states_;
  MirroredArray<SectionSource> sources_;
  DeviceArray<uint8_t> payload_;
  DeviceArray<Outcome> outcomes_;
  CUtensorMap feature_map_, latent_map_, rest_map_;

  // Of the batch.
  uint32_t blocks_ = 0;
  MirroredArena arena_;
  MirroredArena::Array<uint32_t> tokens_, first_tokens_, first_faults_,
      rest_count_;
  MirroredArena::Array<TokenSlot> slots_;
  MirroredArena::Array<DevicePart> parts_;
  MirroredArena::Array<DeviceRotary> rotaries_;
  uint64_t payload_used_ = 0;
  std::vector<int32_t> known_sinks_;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_GROUP_RESTORER_H_
