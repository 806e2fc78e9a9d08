#include "kernels/cuda/encode_product.h"

#include "kernels/cuda/load_value.cuh"
#include "kernels/cuda/product_pipeline.cuh"

namespace latentkv::cuda {
namespace {

// A residual beyond this is no number of fp16 that leaves a sum what it is.
constexpr float kResidualMax = 60000;

__device__ __forceinline__ bool IsFinite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Eight factors of the chunk 4 s + lane % 4.
struct ChunkFactors {
  float values[kChunkChannels];
  __device__ __forceinline__ ChunkFactors(const float* factors, uint32_t s) {
#pragma unroll
    for (uint32_t four = 0; four < 2; ++four) {
      const float4 f = product::Factors(factors, 2 * s + four);
      values[4 * four] = f.x, values[4 * four + 1] = f.y, values[4 * four + 2] = f.z, values[4 * four + 3] = f.w;
    }
  }
};

// Tiles of channels that are worked on for each block.
__host__ __device__ uint32_t TilesOf(const ProductParams& params) {
  return (params.tile_count + params.tile_step - 1) / params.tile_step;
}

__device__ __forceinline__ uint32_t RowOfThread() {
  return threadIdx.x % product::kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
}

// Of values, which the product predicts.
template <DType kDType>
class Residual {
 public:
  using Params = ResidualParams;
  __device__ __forceinline__ Residual(const ProductParams& params, const Params& own, const product::Shared& shared)
      : params_(params), own_(own), parts_(shared.parts), lane_(threadIdx.x % 32) {}

  // Values come near while they are predicted.
  __device__ __forceinline__ void Prepare(const product::TileData& data, uint32_t block_in_tile) const {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const TokenSlot slot = data.slots[block_in_tile * kBlockTokens + RowOfThread() + 8 * r];
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const ChunkTarget& target = data.tile.chunks[4 * s + lane_ % 4];
        if (target.part >= 0) asm volatile("prefetch.global.L2 [%0];" ::"l"(AddressOf(target, slot)));
      }
    }
  }

  __device__ __forceinline__ void operator()(const product::TileValues& tile) const {
    RawChunk<kDType> raw[2][4];
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const TokenSlot slot = tile.data.slots[tile.block_in_tile * kBlockTokens + RowOfThread() + 8 * r];
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const ChunkTarget& target = tile.data.tile.chunks[4 * s + lane_ % 4];
        if (target.part >= 0) {
          raw[r][s].Load(AddressOf(target, slot), parts_[target.part - params_.first_part].dim);
        } else {
          raw[r][s].Clear();
        }
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) Row(tile, raw[r], r);
  }

 private:
  __device__ __forceinline__ const uint8_t* AddressOf(const ChunkTarget& target, const TokenSlot& slot) const {
    const DevicePart& part = parts_[target.part - params_.first_part];
    return part.base + slot.page * part.page + slot.offset * part.token + target.head * part.head + target.dim * part.dim;
  }

  __device__ __forceinline__ void Row(const product::TileValues& tile, const RawChunk<kDType> (&raw)[4], uint32_t r) const {
    const product::TileData& data = tile.data;
    const uint32_t token = RowOfThread() + 8 * r, first_token = data.plans[tile.block_in_tile].first_token;
    const bool sink = first_token == 0 && token < kSinkTokens;
    const size_t at = size_t{tile.block} * kBlockTokens + token;
    float loaded[4][kChunkChannels];
    bool finite = true;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
#pragma unroll
      for (uint32_t k = 0; k < kChunkChannels; ++k) {
        loaded[s][k] = raw[s].At(k);
        finite &= IsFinite(loaded[s][k]);
      }
    }
    if (data.tile.turn != kTurnNone) Unturn(data.tile, first_token + token, loaded);
    float2 energy = {0, 0};
    bool beyond = false;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkFactors mean(data.mean, s), weight(data.factor, s);
      uint32_t words[kChunkChannels / 2];
      float left[kChunkChannels];
#pragma unroll
      for (uint32_t k = 0; k < kChunkChannels; ++k) {
        const float scale = weight.values[k] * own_.inverse_step;
        left[k] = (loaded[s][k] - tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2]) * scale;
        const float plain = (loaded[s][k] - mean.values[k]) * scale;
        energy.x += left[k] * left[k];
        energy.y += plain * plain;
        const bool fits = fabsf(left[k]) < kResidualMax;  // No NaN does.
        beyond |= !fits;
        if (!fits || sink) left[k] = 0;
      }
#pragma unroll
      for (uint32_t w = 0; w < kChunkChannels / 2; ++w) {
        const __half2 two = __floats2half2_rn(left[2 * w], left[2 * w + 1]);
        words[w] = reinterpret_cast<const uint32_t&>(two);
      }
      uint16_t* to = own_.residuals + at * own_.stride + tile.channels * kTileChannels + (4 * s + lane_ % 4) * kChunkChannels;
      *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    }
#pragma unroll
    for (uint32_t apart = 1; apart < 4; apart *= 2) {
      energy.x += __shfl_xor_sync(~0u, energy.x, apart);
      energy.y += __shfl_xor_sync(~0u, energy.y, apart);
    }
    if (lane_ % 4 == 0) {
      own_.energies[size_t{tile.channels} * params_.blocks * kBlockTokens + at] = sink ? float2{0, 0} : energy;
    }
    if (!finite) atomicOr(own_.faults + tile.block, kEncodeNotFinite);
    if (finite && beyond && !sink) atomicOr(own_.exact + tile.block, 1ull << token);
  }

  // Undoes Scatter's Turn (restore_product.cu), up to rounding.
  __device__ __forceinline__ void Unturn(const ProductTile& tile, uint32_t position,
                                         float (&loaded)[4][kChunkChannels]) const {
    const DeviceRotary rotary = params_.rotaries[tile.rotary];
    const size_t at = size_t{position} * rotary.pairs;
    const bool halves = tile.turn == kTurnHalves;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkTarget& target = tile.chunks[4 * s + lane_ % 4];
      if (target.part < 0 || (halves && s >= 2)) continue;
      const float4* cosines = reinterpret_cast<const float4*>(rotary.cosine + at + target.pair);
      const float4* sines = reinterpret_cast<const float4*>(rotary.sine + at + target.pair);
#pragma unroll
      for (uint32_t four = 0; four < 2; ++four) {
        if (!halves && four == 1) continue;
        const float4 c = __ldg(cosines + four), d = __ldg(sines + four);
        const float cosine[4] = {c.x, c.y, c.z, c.w}, sine[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
          if (halves) {
            if (s < 2) Unturn(cosine[k], sine[k], rotary.undo, &loaded[s][4 * four + k], &loaded[s + 2 < 4 ? s + 2 : 3][4 * four + k]);
          } else {
            Unturn(cosine[k], sine[k], rotary.undo, &loaded[s][2 * k], &loaded[s][2 * k + 1]);
          }
        }
      }
    }
  }
  __device__ static __forceinline__ void Unturn(float cosine, float sine, float undo, float* x, float* y) {
    const float turned = (*x * cosine + *y * sine) * undo;
    *y = (*y * cosine - *x * sine) * undo;
    *x = turned;
  }

  const ProductParams& params_;
  const Params& own_;
  const DevicePart* const parts_;
  const uint32_t lane_;
};

// Of values that the quantized latents give in the place of residuals.
class Loss {
 public:
  using Params = LossParams;
  __device__ __forceinline__ Loss(const ProductParams& params, const Params& own, const product::Shared&)
      : params_(params), own_(own), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Prepare(const product::TileData&, uint32_t) const {}

  __device__ __forceinline__ void operator()(const product::TileValues& tile) const {
    const product::TileData& data = tile.data;
    const unsigned long long exact = own_.exact[tile.block];
    float loss = 0;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t token = RowOfThread() + 8 * r;
      const bool sink = data.plans[tile.block_in_tile].first_token == 0 && token < kSinkTokens;
      if (sink || (exact >> token & 1)) continue;
      const uint16_t* from = own_.residuals + (size_t{tile.block} * kBlockTokens + token) * own_.stride +
                             tile.channels * kTileChannels + lane_ % 4 * kChunkChannels;
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(from + 4 * s * kChunkChannels));
        const uint32_t halves[4] = {words.x, words.y, words.z, words.w};
        const ChunkFactors unweigh(data.feature_scale, s), sensitivity(data.factor, s);
#pragma unroll
        for (uint32_t k = 0; k < kChunkChannels; ++k) {
          const float residual = __half2float(__ushort_as_half(static_cast<uint16_t>(halves[k / 2] >> 16 * (k % 2))));
          const float left = residual * (own_.step * unweigh.values[k]) - tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2];
          loss += sensitivity.values[k] * (left * left);
        }
      }
    }
#pragma unroll
    for (uint32_t apart = 16; apart > 0; apart /= 2) loss += __shfl_xor_sync(~0u, loss, apart);
    if (lane_ != 0) return;
    const uint32_t tiles = TilesOf(params_);
    const uint32_t warp = threadIdx.x % product::kWarpgroup / 32;
    own_.losses[(size_t{tile.block} * tiles + tile.channels / params_.tile_step) * 4 + warp] = loss;
  }

 private:
  const ProductParams& params_;
  const Params& own_;
  const uint32_t lane_;
};

}  // namespace

absl::Status FormResiduals(const ProductMaps& maps, const ProductParams& params, const ResidualParams& residuals,
                           DType dtype, uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  const auto launch = [&]<DType kDType>() {
    return product::LaunchProduct<Residual<kDType>>(maps, params, residuals, multiprocessors, stream,
                                                    "forming residuals on the device");
  };
  switch (dtype) {
    case DType::kBf16: return launch.template operator()<DType::kBf16>();
    case DType::kFp16: return launch.template operator()<DType::kFp16>();
    case DType::kFp32: return launch.template operator()<DType::kFp32>();
    case DType::kFp8E4M3: return launch.template operator()<DType::kFp8E4M3>();
  }
  return absl::InvalidArgumentError("pages of an unknown type");
}

uint32_t LossTiles(const ProductParams& params) { return TilesOf(params); }

absl::Status MeasureLosses(const ProductMaps& maps, const ProductParams& params, const LossParams& losses,
                           uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  return product::LaunchProduct<Loss>(maps, params, losses, multiprocessors, stream, "measuring a loss on the device");
}

}  // namespace latentkv::cuda
