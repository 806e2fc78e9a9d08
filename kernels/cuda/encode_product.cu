#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/load_value.cuh"
#include "kernels/cuda/product_pipeline.cuh"

namespace latentkv::cuda {
namespace {

// What fp16 holds.
constexpr float kResidualMax = 65504;

__device__ __forceinline__ bool IsFinite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// Four floats of an address in shared memory, which has 32 bits.
__device__ __forceinline__ float4 SharedFour(uint32_t address) {
  float4 four;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
               : "r"(address));
  return four;
}

// Eight factors of the chunk 4 s + lane % 4.
struct ChunkFactors {
  float values[kChunkChannels];
  __device__ __forceinline__ ChunkFactors(const float* factors, uint32_t s) {
    const uint32_t address = SharedAddress(factors) + (8 * s + threadIdx.x % 4) * sizeof(float4);
#pragma unroll
    for (uint32_t four = 0; four < 2; ++four) {
      const float4 f = SharedFour(address + 4 * four * sizeof(float4));
      values[4 * four] = f.x, values[4 * four + 1] = f.y, values[4 * four + 2] = f.z, values[4 * four + 3] = f.w;
    }
  }
  __device__ __forceinline__ void Scale(float by) {
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) values[k] *= by;
  }
};

// Tiles of channels that are worked on for each block.
__host__ __device__ uint32_t TilesOf(const ProductParams& params) {
  return (params.tile_count + params.tile_step - 1) / params.tile_step;
}

__device__ __forceinline__ uint32_t RowOfThread() {
  return threadIdx.x % product::kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4;
}

// Where a thread's four chunks of two tokens lie. All channels of a tile are of one part (product_tiles.cc).
struct Source {
  const uint8_t* tokens[2];  // Head 0, dimension 0.
  int64_t chunks[4];         // From there; negative: there is none.
  int64_t dim;

  __device__ __forceinline__ Source(const DevicePart& part, const ProductTile& tile, const TokenSlot* slots)
      : dim(part.dim) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const TokenSlot slot = slots[8 * r];
      tokens[r] = part.base + slot.page * part.page + slot.offset * part.token;
    }
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkTarget target = tile.chunks[4 * s + threadIdx.x % 4];
      chunks[s] = target.part < 0 ? -1 : target.head * part.head + target.dim * part.dim;
    }
  }
  // Whether every chunk's values of kBytes lie together and are aligned.
  template <uint32_t kBytes, uint32_t kAlignment>
  __device__ __forceinline__ bool Together() const {
    uint64_t places = reinterpret_cast<uintptr_t>(tokens[0]) | reinterpret_cast<uintptr_t>(tokens[1]);
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) places |= chunks[s] < 0 ? 0 : chunks[s];
    return dim == kBytes / kChunkChannels && places % kAlignment == 0;
  }
};

// Of values, which the product predicts.
template <DType kDType>
class Residual {
 public:
  using Params = ResidualParams;
  using Raw = RawChunk<kDType>;
  __device__ __forceinline__ Residual(const ProductParams& params, const Params& own, const product::Shared& shared)
      : params_(params), own_(own), parts_(shared.parts), lane_(threadIdx.x % 32) {}

  // Values come near while they are predicted.
  __device__ __forceinline__ void Prepare(const product::TileData& data, uint32_t block_in_tile) const {
    const Source source = SourceOf(data, block_in_tile);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        if (source.chunks[s] >= 0) asm volatile("prefetch.global.L2 [%0];" ::"l"(source.tokens[r] + source.chunks[s]));
      }
    }
  }

  __device__ __forceinline__ void operator()(const product::TileValues& tile) const {
    const Source source = SourceOf(tile.data, tile.block_in_tile);
    Raw raw[2][4] = {};
    if (source.Together<Raw::kBytes, Raw::kAlignment>()) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
#pragma unroll
        for (uint32_t s = 0; s < 4; ++s) {
          if (source.chunks[s] >= 0) raw[r][s] = Raw::Load(source.tokens[r] + source.chunks[s]);
        }
      }
    } else {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
#pragma unroll
        for (uint32_t s = 0; s < 4; ++s) {
          if (source.chunks[s] >= 0) raw[r][s] = Raw::Load(source.tokens[r] + source.chunks[s], source.dim);
        }
      }
    }
    DeviceRotary rotary = {};
    if (tile.data.tile.turn != kTurnNone) rotary = params_.rotaries[tile.data.tile.rotary];
    // Two chunks at a time, which hold all that turns with one another.
    float2 energy[2] = {};
    uint4 packed[2][4];
#pragma unroll
    for (uint32_t s = 0; s < 2; ++s) {
      ChunkFactors weights[2] = {{tile.data.factor, s}, {tile.data.factor, s + 2}};
      const ChunkFactors means[2] = {{tile.data.mean, s}, {tile.data.mean, s + 2}};
      weights[0].Scale(own_.inverse_step);
      weights[1].Scale(own_.inverse_step);
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        float loaded[2][kChunkChannels];
#pragma unroll
        for (uint32_t c = 0; c < 2; ++c) {
#pragma unroll
          for (uint32_t k = 0; k < kChunkChannels; ++k) loaded[c][k] = raw[r][s + 2 * c].At(k);
        }
        if (tile.data.tile.turn != kTurnNone) Unturn(tile, rotary, r, s, loaded);
#pragma unroll
        for (uint32_t c = 0; c < 2; ++c) {
          packed[r][s + 2 * c] = Left(tile.values, s + 2 * c, r, loaded[c], means[c], weights[c], &energy[r]);
        }
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) Finish(tile, r, energy[r], packed[r]);
  }

 private:
  __device__ __forceinline__ Source SourceOf(const product::TileData& data, uint32_t block_in_tile) const {
    // A tile's first chunk is always there.
    const DevicePart& part = parts_[data.tile.chunks[0].part - params_.first_part];
    return Source(part, data.tile, data.slots + block_in_tile * kBlockTokens + RowOfThread());
  }

  // Residuals of a chunk, and their energy.
  __device__ __forceinline__ static uint4 Left(const float (&values)[64], uint32_t s, uint32_t r,
                                               const float (&loaded)[kChunkChannels], const ChunkFactors& means,
                                               const ChunkFactors& weights, float2* energy) {
    uint32_t words[kChunkChannels / 2];
#pragma unroll
    for (uint32_t w = 0; w < kChunkChannels / 2; ++w) {
      float left[2];
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t k = 2 * w + e;
        left[e] = (loaded[k] - values[4 * (4 * s + w) + 2 * r + e]) * weights.values[k];
        const float plain = (loaded[k] - means.values[k]) * weights.values[k];
        energy->x = fmaf(left[e], left[e], energy->x);
        energy->y = fmaf(plain, plain, energy->y);
      }
      const __half2 two = __floats2half2_rn(left[0], left[1]);
      words[w] = reinterpret_cast<const uint32_t&>(two);
    }
    return {words[0], words[1], words[2], words[3]};
  }

  // Writes a token's share of a tile.
  __device__ __forceinline__ void Finish(const product::TileValues& tile, uint32_t r, float2 energy,
                                         uint4 (&packed)[4]) const {
    const uint32_t token = RowOfThread() + 8 * r;
    const size_t at = size_t{tile.block} * kBlockTokens + token;
    const bool sink = tile.data.plans[tile.block_in_tile].first_token == 0 && token < kSinkTokens;
    // Sums that are numbers, and small, are of numbers that are.
    if (sink || !(energy.x < kResidualMax * kResidualMax) || !IsFinite(energy.y)) {
      Rare(SourceOf(tile.data, tile.block_in_tile), r, own_, tile.block, token, sink, packed);
      if (sink) energy = {0, 0};
    }
    uint16_t* to = own_.residuals + at * own_.stride + tile.channels * kTileChannels + lane_ % 4 * kChunkChannels;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) *reinterpret_cast<uint4*>(to + 4 * s * kChunkChannels) = packed[s];
#pragma unroll
    for (uint32_t apart = 1; apart < 4; apart *= 2) {
      energy.x += __shfl_xor_sync(~0u, energy.x, apart);
      energy.y += __shfl_xor_sync(~0u, energy.y, apart);
    }
    if (lane_ % 4 == 0) own_.energies[size_t{tile.channels} * params_.blocks * kBlockTokens + at] = energy;
  }

  // Zeros for what is no number of fp16, and for sinks; says what cannot be encoded so.
  __device__ __noinline__ static void Rare(const Source source, uint32_t r, const Params& own, uint32_t block,
                                           uint32_t token, bool sink, uint4 (&packed)[4]) {
    bool beyond = false, finite = true;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      uint32_t words[4] = {packed[s].x, packed[s].y, packed[s].z, packed[s].w};
#pragma unroll
      for (uint32_t w = 0; w < 4; ++w) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          const bool number = (words[w] >> 16 * half & 0x7c00) != 0x7c00;
          beyond |= !number;
          if (!number || sink) words[w] &= ~(0xffffu << 16 * half);
        }
      }
      packed[s] = {words[0], words[1], words[2], words[3]};
      if (source.chunks[s] < 0) continue;
      const Raw raw = Raw::Load((r == 0 ? source.tokens[0] : source.tokens[1]) + source.chunks[s], source.dim);
#pragma unroll
      for (uint32_t k = 0; k < kChunkChannels; ++k) finite &= IsFinite(raw.At(k));
    }
    if (!finite) atomicOr(own.faults + block, kEncodeNotFinite);
    if (finite && beyond && !sink) atomicOr(own.exact + block, 1ull << token);
  }

  // Undoes Scatter's Turn (restore_product.cu), up to rounding, in the chunks 4 s + lane % 4 and 8 on.
  __device__ __forceinline__ void Unturn(const product::TileValues& tile, const DeviceRotary& rotary, uint32_t r,
                                         uint32_t s, float (&loaded)[2][kChunkChannels]) const {
    const ProductTile& turned = tile.data.tile;
    const uint32_t position = tile.data.plans[tile.block_in_tile].first_token + RowOfThread() + 8 * r;
    const size_t at = size_t{position} * rotary.pairs;
    const float undo = rotary.undo;
    const bool halves = turned.turn == kTurnHalves;
#pragma unroll
    for (uint32_t c = 0; c < 2; ++c) {
      const ChunkTarget& target = turned.chunks[4 * (s + 2 * c) + lane_ % 4];
      if (target.part < 0 || (halves && c == 1)) continue;
      const float4* cosines = reinterpret_cast<const float4*>(rotary.cosine + at + target.pair);
      const float4* sines = reinterpret_cast<const float4*>(rotary.sine + at + target.pair);
#pragma unroll
      for (uint32_t four = 0; four < 2; ++four) {
        if (!halves && four == 1) continue;
        const float4 x = __ldg(cosines + four), y = __ldg(sines + four);
        const float cosine[4] = {x.x, x.y, x.z, x.w}, sine[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
          if (halves) {
            Unturn(cosine[k], sine[k], undo, &loaded[0][4 * four + k], &loaded[1][4 * four + k]);
          } else {
            Unturn(cosine[k], sine[k], undo, &loaded[c][2 * k], &loaded[c][2 * k + 1]);
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
          const float left =
              residual * (own_.step * unweigh.values[k]) - tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2];
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
    case DType::kBf16:
      return launch.template operator()<DType::kBf16>();
    case DType::kFp16:
      return launch.template operator()<DType::kFp16>();
    case DType::kFp32:
      return launch.template operator()<DType::kFp32>();
    case DType::kFp8E4M3:
      return launch.template operator()<DType::kFp8E4M3>();
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
