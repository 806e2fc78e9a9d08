// The two products of encoding that use a group's decoder
// (product_pipeline.cuh): what prediction leaves of the engine's values, and
// the loss that the quantized latents of that leave.
#ifndef LATENTKV_KERNELS_CUDA_ENCODE_PRODUCT_H_
#define LATENTKV_KERNELS_CUDA_ENCODE_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/geometry.h"
#include "kernels/cuda/restore_product.h"

namespace latentkv::cuda {

// Why a block is left to the CPU; bits.
enum EncodeFault : uint32_t {
  kEncodeNotFinite = 1,  // It has an infinity or a NaN: it is stored exact.
  kEncodeRests = 2,      // More large latents than the scratch has room for.
  // Sections larger than the scratch or the frames' memory has room for.
  kEncodeRoom = 4,
};

// Residuals are int8, [blocks * kBlockTokens][stride], chunk i of a tile at its
// channels 8 i and on. They are in a unit of their own for each token and
// kResidualTiles tiles, the largest 127 of it; it is in steps, times the root
// of the channel's weight.
inline constexpr uint32_t kResidualTiles = 2;
// A float of about this size is a whole number, whose last byte is that of what
// was added to make it.
inline constexpr float kWholeFloat = 0x1.8p23f;
struct ResidualParams {
  uint8_t* residuals;
  uint64_t stride;  // Channels of the group's tiles.
  float* units;     // [tile_count / kResidualTiles, rounded up][unit_stride]
  uint32_t unit_stride;
  float inverse_step;
  // [tile_count][blocks * kBlockTokens]: of a token's residuals, and of what
  // means leave
  float2* energies;
  // [blocks], bit t set: token t is beyond what floats hold
  unsigned long long* exact;
  uint32_t* faults;  // [blocks]
};
// Writes those of blocks whose plan is valid; params.factor is the root of the
// weights. Sinks leave nothing.
absl::Status FormResiduals(const ProductMaps& maps, const ProductParams& params,
                           const ResidualParams& residuals, DType dtype,
                           uint32_t multiprocessors, cudaStream_t stream);

struct LossParams {
  const uint8_t* residuals;
  uint64_t stride;
  const float* units;
  uint32_t unit_stride;
  float step;
  const unsigned long long* exact;  // [blocks]: these tokens lose nothing
  float* losses;                    // [blocks][tiles worked on][4]
};
// Tiles that are worked on for each block, of `params`.
uint32_t LossTiles(const ProductParams& params);
// params.factor is the sensitivity, params.mean 0, and params.feature_scale 1 /
// the root of the weight.
absl::Status MeasureLosses(const ProductMaps& maps, const ProductParams& params,
                           const LossParams& losses, uint32_t multiprocessors,
                           cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_ENCODE_PRODUCT_H_
