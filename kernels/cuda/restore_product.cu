#include "kernels/cuda/product_pipeline.cuh"
#include "kernels/cuda/restore_product.h"
#include "kernels/cuda/store_value.cuh"

namespace latentkv::cuda {
namespace {

// Turns keys, rounds and stores into pages.
template <DType kDType>
class Scatter {
 public:
  struct Params {};
  static constexpr uint32_t kRunTiles = 1;
  __device__ __forceinline__ Scatter(const ProductParams& params, const Params&,
                                     const product::Shared& shared)
      : params_(params), parts_(shared.parts), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Prepare(const product::TileData&,
                                          uint32_t) const {}

  __device__ __forceinline__ void operator()(
      const product::TileValues& tile) const {
    const product::TileData& data = tile.data;
    const uint32_t row =
        threadIdx.x % product::kWarpgroup / 32 * 16 + lane_ / 4;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t token = row + 8 * r;
      if (data.tile.turn != kTurnNone)
        Turn(data.tile, data.plans[tile.block_in_tile].first_token + token, r,
             tile.values);
      const TokenSlot slot =
          data.slots[tile.block_in_tile * kBlockTokens + token];
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const ChunkTarget target = data.tile.chunks[4 * s + lane_ % 4];
        if (target.part < 0) continue;
        float chunk[kChunkChannels];
#pragma unroll
        for (uint32_t k = 0; k < kChunkChannels; ++k)
          chunk[k] = tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2];
        const DevicePart& part = parts_[target.part - params_.first_part];
        StoreChunk<kDType>(chunk,
                           part.base + slot.page * part.page +
                               slot.offset * part.token +
                               target.head * part.head + target.dim * part.dim,
                           part.dim);
      }
    }
  }

 private:
  // Row r's keys. Tables are read four pairs at a time, which lie together and
  // are aligned (product_tiles.cc).
  __device__ __forceinline__ void Turn(const ProductTile& tile,
                                       uint32_t position, uint32_t r,
                                       float (&values)[64]) const {
    const DeviceRotary rotary = params_.rotaries[tile.rotary];
    const size_t at = size_t{position} * rotary.pairs;
    const bool halves = tile.turn == kTurnHalves;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkTarget& target = tile.chunks[4 * s + lane_ % 4];
      if (target.part < 0 || (halves && s >= 2)) continue;
      const float4* cosines =
          reinterpret_cast<const float4*>(rotary.cosine + at + target.pair);
      const float4* sines =
          reinterpret_cast<const float4*>(rotary.sine + at + target.pair);
#pragma unroll
      for (uint32_t four = 0; four < 2; ++four) {
        if (!halves && four == 1) continue;
        const float4 c = __ldg(cosines + four), d = __ldg(sines + four);
        const float cosine[4] = {c.x, c.y, c.z, c.w},
                    sine[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
          if (halves) {
            const uint32_t first =
                (4 * (4 * s + 2 * four + k / 2) + 2 * r + k % 2) % 32;
            Turn(cosine[k], sine[k], &values[first], &values[first + 32]);
          } else {
            const uint32_t first = 4 * (4 * s + k) + 2 * r;
            Turn(cosine[k], sine[k], &values[first], &values[first + 1]);
          }
        }
      }
    }
  }

  __device__ static __forceinline__ void Turn(float cosine, float sine,
                                              float* x, float* y) {
    const float turned = __fmaf_rn(*x, cosine, -__fmul_rn(*y, sine));
    *y = __fmaf_rn(*y, cosine, __fmul_rn(*x, sine));
    *x = turned;
  }

  const ProductParams& params_;
  const DevicePart* const parts_;
  const uint32_t lane_;
};

template <DType kDType>
absl::Status Launch(const ProductMaps& maps, const ProductParams& params,
                    uint32_t multiprocessors, cudaStream_t stream) {
  return product::LaunchProduct<Scatter<kDType>>(
      maps, params, {}, multiprocessors, stream,
      "restoring a group on the device");
}

}  // namespace

absl::StatusOr<CUtensorMap> MakeProductMap(const int8_t* matrix, uint64_t rows,
                                           uint64_t columns,
                                           uint32_t box_rows) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned int kVersion = 12000;  // The first with tensor maps.
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                       kVersion, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return absl::UnimplementedError(
        "this CUDA driver has no tensor maps: use one of version 12 or later");
  }
  const auto encode =
      reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  CUtensorMap map;
  const cuuint64_t sizes[2] = {columns, rows}, strides[1] = {columns};
  const cuuint32_t box[2] = {kRankTile, box_rows}, element_strides[2] = {1, 1};
  const CUresult result = encode(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t*>(matrix),
      sizes, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  return absl::InternalError(absl::StrCat("a tensor map of ", rows, " by ",
                                          columns, ": error ", int{result}));
}

absl::Status RestoreProduct(const ProductMaps& maps,
                            const ProductParams& params, DType dtype,
                            uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  switch (dtype) {
    case DType::kBf16:
      return Launch<DType::kBf16>(maps, params, multiprocessors, stream);
    case DType::kFp16:
      return Launch<DType::kFp16>(maps, params, multiprocessors, stream);
    case DType::kFp32:
      return Launch<DType::kFp32>(maps, params, multiprocessors, stream);
    case DType::kFp8E4M3:
      return Launch<DType::kFp8E4M3>(maps, params, multiprocessors, stream);
  }
  return absl::InvalidArgumentError("pages of an unknown type");
}

}  // namespace latentkv::cuda
