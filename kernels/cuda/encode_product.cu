#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/load_value.cuh"
#include "kernels/cuda/product_pipeline.cuh"

namespace latentkv::cuda {
namespace {

constexpr float kResidualMax = 127;

// Signed bytes to floats, and those within [-127, 127] rounded to bytes:
// quicker than conversions are.
__device__ __forceinline__ float FloatOfByte(uint32_t word, uint32_t k) {
  return __uint_as_float(__byte_perm(word ^ 0x80808080u,
                                     __float_as_uint(0x1p23f), 0x7540 | k)) -
         (0x1p23f + 128);
}
__device__ __forceinline__ uint32_t BytesOf(const float (&values)[4],
                                            float by) {
  uint32_t bits[4];
#pragma unroll
  for (uint32_t k = 0; k < 4; ++k)
    bits[k] = __float_as_uint(fmaf(values[k], by, kWholeFloat));
  return __byte_perm(__byte_perm(bits[0], bits[1], 0x40),
                     __byte_perm(bits[2], bits[3], 0x40), 0x5410);
}

__device__ __forceinline__ bool IsFinite(float value) {
  return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

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
    const uint32_t address =
        SharedAddress(factors) + (8 * s + threadIdx.x % 4) * sizeof(float4);
#pragma unroll
    for (uint32_t four = 0; four < 2; ++four) {
      const float4 f = SharedFour(address + 4 * four * sizeof(float4));
      values[4 * four] = f.x, values[4 * four + 1] = f.y,
                 values[4 * four + 2] = f.z, values[4 * four + 3] = f.w;
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

// Where a thread's four chunks of two tokens lie. All channels of a tile are of
// one part (product_tiles.cc).
struct Source {
  const uint8_t* tokens[2];  // Head 0, dimension 0.
  int64_t chunks[4];         // From there; negative: there is none.
  int64_t dim;

  __device__ __forceinline__ Source(const DevicePart& part,
                                    const ProductTile& tile,
                                    const TokenSlot* slots)
      : dim(part.dim) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const TokenSlot slot = slots[8 * r];
      tokens[r] = part.base + slot.page * part.page + slot.offset * part.token;
    }
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkTarget target = tile.chunks[4 * s + threadIdx.x % 4];
      chunks[s] = target.part < 0
                      ? -1
                      : target.head * part.head + target.dim * part.dim;
    }
  }
  // Whether every chunk's values of kBytes lie together and are aligned.
  template <uint32_t kBytes, uint32_t kAlignment>
  __device__ __forceinline__ bool Together() const {
    uint64_t places = reinterpret_cast<uintptr_t>(tokens[0]) |
                      reinterpret_cast<uintptr_t>(tokens[1]);
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
  static constexpr uint32_t kRunTiles = kResidualTiles;
  __device__ __forceinline__ Residual(const ProductParams& params,
                                      const Params& own,
                                      const product::Shared& shared)
      : params_(params),
        own_(own),
        parts_(shared.parts),
        lane_(threadIdx.x % 32) {}

  // Values come near while they are predicted.
  __device__ __forceinline__ void Prepare(const product::TileData& data,
                                          uint32_t block_in_tile) const {
    const Source source = SourceOf(data, block_in_tile);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        if (source.chunks[s] >= 0)
          asm volatile("prefetch.global.L2 [%0];" ::"l"(source.tokens[r] +
                                                        source.chunks[s]));
      }
    }
  }

  // A token at a time, so that what is loaded for one fits the registers beside
  // all values.
  __device__ __forceinline__ void operator()(const product::TileValues& tile) {
    const Source source = SourceOf(tile.data, tile.block_in_tile);
    const bool together = source.Together<Raw::kBytes, Raw::kAlignment>();
    DeviceRotary rotary = {};
    if (tile.data.tile.turn != kTurnNone)
      rotary = params_.rotaries[tile.data.tile.rotary];
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      Raw raw[4] = {};
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        if (source.chunks[s] < 0) continue;
        const uint8_t* from = source.tokens[r] + source.chunks[s];
        raw[s] = together ? Raw::Load(from) : Raw::Load(from, source.dim);
      }
      Leftover left;
      // Two chunks at a time, which hold all that turns with one another.
#pragma unroll
      for (uint32_t s = 0; s < 2; ++s) {
        float loaded[2][kChunkChannels];
#pragma unroll
        for (uint32_t c = 0; c < 2; ++c) {
#pragma unroll
          for (uint32_t k = 0; k < kChunkChannels; ++k)
            loaded[c][k] = raw[s + 2 * c].At(k);
        }
        if (tile.data.tile.turn != kTurnNone)
          Unturn(tile, rotary, r, s, loaded);
#pragma unroll
        for (uint32_t c = 0; c < 2; ++c)
          Subtract(tile, s + 2 * c, r, loaded[c], &left);
      }
      Finish(tile, r, left);
    }
  }

 private:
  // Of a token's channels of a thread.
  struct Leftover {
    float with = 0, without = 0;  // Energies.
    float largest = 0;
    __device__ __forceinline__ void Gather() {
#pragma unroll
      for (uint32_t apart = 1; apart < 4; apart *= 2) {
        with += __shfl_xor_sync(~0u, with, apart);
        without += __shfl_xor_sync(~0u, without, apart);
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
      }
    }
  };

  __device__ __forceinline__ Source SourceOf(const product::TileData& data,
                                             uint32_t block_in_tile) const {
    // A tile's first chunk is always there.
    const DevicePart& part =
        parts_[data.tile.chunks[0].part - params_.first_part];
    return Source(part, data.tile,
                  data.slots + block_in_tile * kBlockTokens + RowOfThread());
  }

  // Puts a chunk's residuals in the place of its predicted values.
  __device__ __forceinline__ void Subtract(
      const product::TileValues& tile, uint32_t s, uint32_t r,
      const float (&loaded)[kChunkChannels], Leftover* leftover) const {
    ChunkFactors weights(tile.data.factor, s);
    const ChunkFactors means(tile.data.mean, s);
    weights.Scale(own_.inverse_step);
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) {
      float& value = tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2];
      value = (loaded[k] - value) * weights.values[k];
      const float plain = (loaded[k] - means.values[k]) * weights.values[k];
      leftover->with = fmaf(value, value, leftover->with);
      leftover->without = fmaf(plain, plain, leftover->without);
      leftover->largest = fmaxf(leftover->largest, fabsf(value));
    }
  }

  // Writes a token's share of a tile. If its largest is larger than that of the
  // tiles before in the run, those are written anew in its units.
  __device__ __forceinline__ void Finish(const product::TileValues& tile,
                                         uint32_t r, Leftover left) {
    const uint32_t token = RowOfThread() + 8 * r;
    const size_t at = size_t{tile.block} * kBlockTokens + token;
    const bool sink = tile.data.plans[tile.block_in_tile].first_token == 0 &&
                      token < kSinkTokens;
    left.Gather();
    // Sums that are numbers are of numbers.
    const bool numbers = IsFinite(left.with) && IsFinite(left.without);
    if (!numbers)
      Rare(params_, parts_, own_, tile.data, tile.block_in_tile, tile.block, r,
           sink);
    uint8_t* to = own_.residuals + at * own_.stride +
                  tile.channels * kTileChannels + lane_ % 4 * kChunkChannels;
    float largest = sink || !numbers ? 0 : left.largest;
    if (const uint32_t before = tile.channels % kRunTiles; before > 0) {
      if (largest > largest_[r]) {
        for (uint32_t t = 1; t <= before; ++t)
          Rescale(to - t * kTileChannels, largest_[r] / largest);
      } else {
        largest = largest_[r];
      }
    }
    largest_[r] = largest;
    const float inverse = largest > 0 ? kResidualMax / largest : 0;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      uint32_t words[2];
#pragma unroll
      for (uint32_t w = 0; w < 2; ++w) {
        float values[4];
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k)
          values[k] = tile.values[4 * (4 * s + 2 * w + k / 2) + 2 * r + k % 2];
        words[w] = BytesOf(values, inverse);
      }
      *reinterpret_cast<uint2*>(to + 4 * s * kChunkChannels) = {words[0],
                                                                words[1]};
    }
    if (lane_ % 4 != 0) return;
    own_.units[size_t{tile.channels / kRunTiles} * own_.unit_stride + at] =
        largest / kResidualMax;
    own_.energies[size_t{tile.channels} * params_.blocks * kBlockTokens + at] =
        sink ? float2{0, 0} : float2{left.with, left.without};
  }

  // A thread's residuals of a token in a tile, which it wrote before.
  __device__ __forceinline__ static void Rescale(uint8_t* residuals, float by) {
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      uint2* chunk =
          reinterpret_cast<uint2*>(residuals + 4 * s * kChunkChannels);
      const uint2 from = *chunk;
      float values[2][4];
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k)
        values[0][k] = FloatOfByte(from.x, k),
        values[1][k] = FloatOfByte(from.y, k);
      *chunk = {BytesOf(values[0], by), BytesOf(values[1], by)};
    }
  }

  // Says what cannot be encoded so: numbers that are none, or whose residuals
  // are none.
  __device__ __noinline__ static void Rare(
      const ProductParams& params, const DevicePart* parts, const Params& own,
      const product::TileData& data, uint32_t block_in_tile, uint32_t block,
      uint32_t r, bool sink) {
    const uint32_t token = RowOfThread() + 8 * r;
    const Source source(
        parts[data.tile.chunks[0].part - params.first_part], data.tile,
        data.slots + block_in_tile * kBlockTokens + RowOfThread());
    bool finite = true;
    for (uint32_t s = 0; s < 4; ++s) {
      if (source.chunks[s] < 0) continue;
      const Raw raw = Raw::Load(
          (r == 0 ? source.tokens[0] : source.tokens[1]) + source.chunks[s],
          source.dim);
#pragma unroll
      for (uint32_t k = 0; k < kChunkChannels; ++k)
        finite &= IsFinite(raw.At(k));
    }
    if (!finite) atomicOr(own.faults + block, kEncodeNotFinite);
    if (finite && !sink) atomicOr(own.exact + block, 1ull << token);
  }

  // Undoes Scatter's Turn (restore_product.cu), up to rounding, in the chunks 4
  // s + lane % 4 and 8 on.
  __device__ __forceinline__ void Unturn(
      const product::TileValues& tile, const DeviceRotary& rotary, uint32_t r,
      uint32_t s, float (&loaded)[2][kChunkChannels]) const {
    const ProductTile& turned = tile.data.tile;
    const uint32_t position =
        tile.data.plans[tile.block_in_tile].first_token + RowOfThread() + 8 * r;
    const size_t at = size_t{position} * rotary.pairs;
    const float undo = rotary.undo;
    const bool halves = turned.turn == kTurnHalves;
#pragma unroll
    for (uint32_t c = 0; c < 2; ++c) {
      const ChunkTarget& target = turned.chunks[4 * (s + 2 * c) + lane_ % 4];
      if (target.part < 0 || (halves && c == 1)) continue;
      const float4* cosines =
          reinterpret_cast<const float4*>(rotary.cosine + at + target.pair);
      const float4* sines =
          reinterpret_cast<const float4*>(rotary.sine + at + target.pair);
#pragma unroll
      for (uint32_t four = 0; four < 2; ++four) {
        if (!halves && four == 1) continue;
        const float4 x = __ldg(cosines + four), y = __ldg(sines + four);
        const float cosine[4] = {x.x, x.y, x.z, x.w},
                    sine[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
          if (halves) {
            Unturn(cosine[k], sine[k], undo, &loaded[0][4 * four + k],
                   &loaded[1][4 * four + k]);
          } else {
            Unturn(cosine[k], sine[k], undo, &loaded[c][2 * k],
                   &loaded[c][2 * k + 1]);
          }
        }
      }
    }
  }
  __device__ static __forceinline__ void Unturn(float cosine, float sine,
                                                float undo, float* x,
                                                float* y) {
    const float turned = (*x * cosine + *y * sine) * undo;
    *y = (*y * cosine - *x * sine) * undo;
    *x = turned;
  }

  const ProductParams& params_;
  const Params& own_;
  const DevicePart* const parts_;
  const uint32_t lane_;
  float largest_[2];  // Of the thread's tokens, in the run so far.
};

// Of values that the quantized latents give in the place of residuals.
class Loss {
 public:
  using Params = LossParams;
  static constexpr uint32_t kRunTiles = 1;
  __device__ __forceinline__ Loss(const ProductParams& params,
                                  const Params& own, const product::Shared&)
      : params_(params), own_(own), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Prepare(const product::TileData&,
                                          uint32_t) const {}

  __device__ __forceinline__ void operator()(
      const product::TileValues& tile) const {
    const product::TileData& data = tile.data;
    const unsigned long long exact = own_.exact[tile.block];
    float loss = 0;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t token = RowOfThread() + 8 * r;
      const bool sink = data.plans[tile.block_in_tile].first_token == 0 &&
                        token < kSinkTokens;
      if (sink || (exact >> token & 1)) continue;
      const size_t at = size_t{tile.block} * kBlockTokens + token;
      const uint8_t* from = own_.residuals + at * own_.stride +
                            tile.channels * kTileChannels +
                            lane_ % 4 * kChunkChannels;
      const float unit =
          own_.step *
          __ldg(own_.units +
                size_t{tile.channels / kResidualTiles} * own_.unit_stride + at);
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const uint2 words = __ldg(
            reinterpret_cast<const uint2*>(from + 4 * s * kChunkChannels));
        const ChunkFactors unweigh(data.feature_scale, s),
            sensitivity(data.factor, s);
#pragma unroll
        for (uint32_t k = 0; k < kChunkChannels; ++k) {
          const float residual = FloatOfByte(k < 4 ? words.x : words.y, k % 4);
          const float left = residual * (unit * unweigh.values[k]) -
                             tile.values[4 * (4 * s + k / 2) + 2 * r + k % 2];
          loss += sensitivity.values[k] * (left * left);
        }
      }
    }
#pragma unroll
    for (uint32_t apart = 16; apart > 0; apart /= 2)
      loss += __shfl_xor_sync(~0u, loss, apart);
    if (lane_ != 0) return;
    const uint32_t tiles = TilesOf(params_);
    const uint32_t warp = threadIdx.x % product::kWarpgroup / 32;
    own_.losses[(size_t{tile.block} * tiles +
                 tile.channels / params_.tile_step) *
                    4 +
                warp] = loss;
  }

 private:
  const ProductParams& params_;
  const Params& own_;
  const uint32_t lane_;
};

}  // namespace

absl::Status FormResiduals(const ProductMaps& maps, const ProductParams& params,
                           const ResidualParams& residuals, DType dtype,
                           uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  const auto launch = [&]<DType kDType>() {
    return product::LaunchProduct<Residual<kDType>>(
        maps, params, residuals, multiprocessors, stream,
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

absl::Status MeasureLosses(const ProductMaps& maps, const ProductParams& params,
                           const LossParams& losses, uint32_t multiprocessors,
                           cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  return product::LaunchProduct<Loss>(maps, params, losses, multiprocessors,
                                      stream, "measuring a loss on the device");
}

}  // namespace latentkv::cuda
