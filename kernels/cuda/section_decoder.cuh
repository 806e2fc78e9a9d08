// Decodes one section of latents, by a warp (docs/formats/entropy.md).
#ifndef LATENTKV_KERNELS_CUDA_SECTION_DECODER_CUH_
#define LATENTKV_KERNELS_CUDA_SECTION_DECODER_CUH_

#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/section_bytes.cuh"
#include "kernels/cuda/section_checksum.cuh"
#include "kernels/cuda/section_escapes.cuh"
#include "kernels/cuda/word_window.cuh"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv::cuda::decode {

constexpr uint32_t kWarp = 32, kWarps = 16, kThreads = kWarp * kWarps;
// Where one warp fetches what another decodes.
constexpr uint32_t kTeams = kWarps / 2;
// Every state of the coder lies in [2^16, 2^32).
constexpr uint32_t kStart = 1u << 16;
constexpr uint32_t kHeaderBytes = 8;
constexpr uint32_t kActivityPrior = 4u << kActivityBits, kActivityDecay = 3;
constexpr uint32_t kAboveBound = 1u << 31;
constexpr uint32_t kStoredSinks = 1, kKnownSinks = 2, kPredicted = 4;

// What a CTA's warps share.
struct Shared {
  DecodeImage image;
  SectionTeam teams[kTeams];
  uint64_t loaded;  // Barrier.
};

// Of addresses in shared memory, which have 32 bits. Volatile: the order of the
// steps of decoding is the fastest.
__device__ __forceinline__ int32_t SharedSignedByte(uint32_t address) {
  int32_t value;
  asm volatile("ld.shared.s8 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint32_t SharedWord(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
// Volatile, to be on its way before what comes next.
__device__ __forceinline__ uint4 EarlyLoad(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// One section, by a warp. Token t of half h is 32 h + lane.
class SectionDecoder {
 public:
  // `team` is null where the section's bytes are all there; otherwise it is
  // team `team_index`.
  __device__ __forceinline__ SectionDecoder(const DecodeParams& params,
                                            const Shared& shared,
                                            uint32_t group, uint32_t block,
                                            const SectionTeam* team,
                                            uint32_t team_index)
      : params_(params),
        image_(shared.image),
        group_(params.groups[group]),
        source_(params.sources[size_t{group} * params.blocks + block]),
        team_(team),
        team_index_(team_index),
        lane_(threadIdx.x % kWarp),
        section_(size_t{group} * params.blocks + block),
        block_(block),
        symbols_(SharedAddress(shared.image.symbols)),
        first_ranges_(SharedAddress(shared.image.first_ranges)),
        first_block_(params.first_tokens[block] == 0),
        bytes_(source_.payload, team) {
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      latents_[h] = params.latents +
                    (size_t{block} * kBlockTokens + h * kWarp + lane_) *
                        params.latent_stride +
                    group_.column;
    }
  }

  __device__ __forceinline__ void Run() {
    for (uint32_t i = lane_; i < kRankTilesMax; i += kWarp)
      params_.rest_tiles[section_ * kRankTilesMax + i] = kNoRest;
    __syncwarp();
    state_ = {};
    state_.step = source_.step;
    uint32_t fault = kFaultMissing;
    if (source_.payload != nullptr) {
      const bool sound = team_ != nullptr ||
                         SectionChecksum(image_, bytes_.data(), source_.bytes,
                                         lane_) == source_.crc32c;
      fault = __any_sync(~0u, !sound) ? uint32_t{kFaultChecksum} : Decode();
    }
    if (team_ != nullptr) {
      Meet(team_index_);
      if (source_.payload != nullptr && team_->sound == 0)
        fault = kFaultChecksum;
    }
    state_.fault = fault;
    if (fault != kFaultNone) {
      state_.rank_tiles = 0;
      own_[0] = own_[1] = inherited_[0] = inherited_[1] = 0;
    }
    ClearInherited(state_.rank_tiles);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      const size_t at = section_ * kBlockTokens + h * kWarp + lane_;
      params_.own_sums[at] = own_[h] | (above_ >> h & 1 ? kAboveBound : 0);
      params_.inherited_sums[at] = inherited_[h];
    }
    if (lane_ == 0) params_.states[section_] = state_;
  }

 private:
  __device__ __forceinline__ uint32_t Decode() {
    if (uint32_t fault = Header(); fault != kFaultNone) return fault;
    if (uint32_t fault = Rows(); fault != kFaultNone) return fault;
    // What is stored has no latents.
    bool stored = false;
    for (uint32_t i = 0; i < state_.exact_count; ++i) {
      const uint32_t token = bytes_.Byte(kHeaderBytes + i);
      stored |=
          token % kWarp == lane_ && (token < kWarp ? own_[0] : own_[1]) != 0;
    }
    stored |= first_block_ && lane_ < kSinkTokens && own_[0] != 0;
    return __any_sync(~0u, stored) ? kFaultBounds : kFaultNone;
  }

  // Reads what comes before the symbols, and checks it as ReadLatentSection
  // does.
  __device__ __forceinline__ uint32_t Header() {
    const uint64_t bytes = source_.bytes;
    if (bytes < kHeaderBytes) return kFaultHeader;
    bytes_.Await(min(source_.bytes, kHeaderBytes + kBlockTokens));
    rank_ = bytes_.Word16(0);
    const uint32_t flags = bytes_.Byte(2), exact = bytes_.Byte(3);
    escape_count_ = bytes_.Word32(4);
    const uint32_t sinks = flags & (kStoredSinks | kKnownSinks);
    const bool sinks_fit = first_block_
                               ? sinks == kStoredSinks || sinks == kKnownSinks
                               : sinks == 0;
    if (rank_ > group_.rank || (flags & ~(sinks | kPredicted)) != 0 ||
        !sinks_fit || exact > kBlockTokens ||
        escape_count_ > rank_ * kBlockTokens) {
      return kFaultHeader;
    }
    const uint64_t escapes = kHeaderBytes + exact +
                             uint64_t{exact} * group_.exact_token_bytes +
                             (sinks == kStoredSinks ? group_.sink_bytes : 0);
    const uint64_t stream = escapes + uint64_t{escape_count_} * kEscapeBytes;
    if (stream > bytes) return kFaultHeader;
    if (bytes - stream < kWarp * sizeof(uint32_t) || (bytes - stream) % 2 != 0)
      return kFaultStream;
    bool ordered = true;
    for (uint32_t i = lane_; i < exact; i += kWarp) {
      const uint32_t token = bytes_.Byte(kHeaderBytes + i);
      ordered &= token < kBlockTokens &&
                 (i == 0 || token > bytes_.Byte(kHeaderBytes + i - 1));
    }
    if (!__all_sync(~0u, ordered)) return kFaultHeader;
    if (sinks == kKnownSinks && source_.known_sinks == 0) return kFaultSinks;
    state_.exact_count = exact;
    state_.sinks = sinks;
    state_.predicted = (flags & kPredicted) != 0;
    escapes_ = escapes;
    stream_ = stream;
    return kFaultNone;
  }

  __device__ __forceinline__ uint32_t Rows() {
    const uint32_t first_word = stream_ + kWarp * sizeof(uint32_t);
    bytes_.Await(first_word);
    x_ = bytes_.Word32(stream_ + lane_ * sizeof(uint32_t));
    if (__any_sync(~0u, x_ < kStart)) return kFaultStream;
    WordWindow words(&bytes_, first_word, (source_.bytes - first_word) / 2,
                     lane_);
    const uint32_t fault =
        InWindow() ? AllRows<true>(&words) : AllRows<false>(&words);
    if (fault != kFaultNone) return fault;
    if (!words.AtEnd() || __any_sync(~0u, x_ != kStart)) return kFaultStream;
    if (escapes_taken_ != escape_count_) return kFaultEscapes;
    state_.rank_tiles = (rank_ + kRankTile - 1) / kRankTile;
    const uint32_t done =
        (rank_ + kContextRows - 1) / kContextRows * kContextRows;
    ClearColumns(done, state_.rank_tiles * kRankTile);
    return kFaultNone;
  }

  // Whether shared memory has the symbols of all classes that may be asked for;
  // classes of rows descend.
  __device__ __forceinline__ bool InWindow() const {
    if (rank_ == 0) return true;
    const uint32_t greatest = __ldg(source_.model.classes),
                   least = __ldg(source_.model.classes + rank_ - 1);
    const bool in =
        least >= kLowestWindowClass + kClassShiftMax &&
        greatest + kClassShiftMax < kLowestWindowClass + kWindowClasses;
    return __all_sync(~0u, in);
  }

  template <bool kInWindow>
  __device__ __forceinline__ uint32_t AllRows(WordWindow* words) {
    Shift(kClassShiftMax, 0);
    Shift(kClassShiftMax, 1);
    uint32_t row = 0, fault = kFaultNone;
    if (kInWindow) {
      const uint8_t* at = source_.model.classes;
      uint4 classes = EarlyLoad(at);
      for (; row + kContextRows <= rank_ && fault == kFaultNone;
           row += kContextRows) {
        // The last ones twice, rather than what may not be readable.
        if (row + kContextRows < rank_) at += kContextRows;
        const uint4 next = EarlyLoad(at);
        fault = SixteenRows<true, true>(row, classes, words);
        classes = next;
      }
    }
    for (; row < rank_ && fault == kFaultNone; row += kContextRows) {
      fault = SixteenRows<kInWindow, false>(
          row, EarlyLoad(source_.model.classes + row), words);
    }
    return fault;
  }

  // All of them, or those that there are.
  template <bool kInWindow, bool kAll>
  __device__ __forceinline__ uint32_t SixteenRows(uint32_t row, uint4 classes,
                                                  WordWindow* words) {
    if (row % kRankTile == 0) rest_ = kNoRest;
    const bool looks = kAll || row + kContextRows <= rank_;
    uint4 thresholds[kActivityThresholds / 4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kActivityThresholds / 4 && looks; ++i) {
      thresholds[i] =
          EarlyLoad(source_.model.thresholds +
                    row / kContextRows * kActivityThresholds + 4 * i);
    }
    uint32_t symbols[2][4] = {};  // Four rows a word.
    // Not unrolled: the instruction cache holds this loop, and not four of it.
#pragma unroll 1
    for (uint32_t i = 0; i < 4; ++i) {
      uint32_t four[2] = {};
      FourRows<kInWindow, kAll>(row + 4 * i, classes.x, words, four);
      classes = {classes.y, classes.z, classes.w, 0};
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        symbols[h][0] = symbols[h][1], symbols[h][1] = symbols[h][2],
        symbols[h][2] = symbols[h][3];
        symbols[h][3] = four[h];
      }
    }
    uint32_t magnitudes[2], escapes = 0;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      magnitudes[h] = 0;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        // Zigzag, four at a time. An escape becomes -128, which no symbol does,
        // and counts 128.
        const uint32_t odd = symbols[h][i] & 0x01010101,
                       halves = symbols[h][i] >> 1 & 0x7f7f7f7f;
        magnitudes[h] = __dp4a(halves + odd, 0x01010101u, magnitudes[h]);
        escapes |= halves + odd;
        symbols[h][i] = halves ^ odd * 255;
      }
    }
    uint32_t sums[2] = {magnitudes[0], magnitudes[1]};
    if (__any_sync(~0u, (escapes & 0x80808080) != 0)) {
      if (uint32_t fault = Escapes(row, symbols, sums); fault != kFaultNone)
        return fault;
    }
    if (row < params_.inherited_rank) AddInherited(row, symbols, sums);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      own_[h] += sums[h];
      *reinterpret_cast<uint4*>(latents_[h] + row) = {
          symbols[h][0], symbols[h][1], symbols[h][2], symbols[h][3]};
    }
    if (looks) Look(thresholds, magnitudes);
    return kFaultNone;
  }

  // Symbols of rows [row, row + 4), or those that there are, under `classes`: a
  // byte a row.
  template <bool kInWindow, bool kAll>
  __device__ __forceinline__ void FourRows(uint32_t row, uint32_t classes,
                                           WordWindow* words,
                                           uint32_t (&four)[2]) {
    uint32_t ranges[4][2];
#pragma unroll
    for (uint32_t i = 0; i < 8 && kInWindow; ++i) {
      ranges[i / 2][i % 2] =
          SharedWord(first_range_[i % 2] + 4 * (classes >> 8 * (i / 2) & 255));
    }
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      if (!kAll && row + j >= rank_) break;
      const uint32_t row_class = classes >> 8 * j & 255;
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t symbol =
            kInWindow
                ? Symbol(table_[h] + row_class * kProbabilityOne, ranges[j][h],
                         h, words)
                : RareSymbol(row_class + shifts_[h] - kClassShiftMax, h, words);
        four[h] |= (symbol & 255) << 8 * j;
      }
    }
  }

  // Puts in `latents` and `sums` of magnitudes what the section says in the
  // place of escapes.
  __device__ __forceinline__ uint32_t Escapes(uint32_t row,
                                              uint32_t (&latents)[2][4],
                                              uint32_t (&sums)[2]) {
    uint32_t fault = kFaultNone;
#pragma unroll 1
    for (uint32_t i = 0; i < 4; ++i) {
      uint32_t four[2] = {latents[0][0], latents[1][0]};
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) {
          const uint32_t shift = 8 * j,
                         escaped = __ballot_sync(
                             ~0u, (four[h] >> shift & 255) == 128);
          if (escaped == 0 || fault != kFaultNone) continue;
          const uint32_t count = __popc(escaped);
          if (escapes_taken_ + count > escape_count_) {
            fault = kFaultEscapes;
            continue;
          }
          const Escaped found = TakeEscapes(
              params_, bytes_.data() + escapes_ + escapes_taken_ * kEscapeBytes,
              escaped, row + 4 * i + j, h * kWarp + lane_, rest_,
              params_.rest_tiles + section_ * kRankTilesMax);
          escapes_taken_ += count;
          rest_ = found.rest_tile;
          state_.rests |= rest_ != kNoRest;
          fault = found.fault;
          if (escaped >> lane_ & 1) {
            four[h] = (four[h] & ~(255u << shift)) | (found.q & 255) << shift;
            sums[h] += abs(found.q + 2 * found.rest) - 128;
            above_ |= found.above << h;
          }
        }
      }
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        latents[h][0] = latents[h][1], latents[h][1] = latents[h][2],
        latents[h][2] = latents[h][3];
        latents[h][3] = four[h];
      }
    }
    return fault;
  }

  // Of rows below the inherited rank.
  __device__ __forceinline__ void AddInherited(uint32_t row,
                                               const uint32_t (&latents)[2][4],
                                               const uint32_t (&sums)[2]) {
    const uint32_t rows = params_.inherited_rank - row;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      if (rows >= kContextRows) {
        inherited_[h] += sums[h];
        continue;
      }
      for (uint32_t j = 0; j < rows; ++j) {
        const int32_t q = static_cast<int8_t>(
            (j < 8 ? (j < 4 ? latents[h][0] : latents[h][1])
                   : (j < 12 ? latents[h][2] : latents[h][3])) >>
            8 * (j % 4));
        inherited_[h] += abs(q + 2 * RestAt(row + j, h));
      }
    }
  }

  // Of this lane's token.
  __device__ __forceinline__ int32_t RestAt(uint32_t row, uint32_t half) const {
    if (rest_ == kNoRest) return 0;
    return params_.rests[(size_t{rest_} * kBlockTokens + half * kWarp + lane_) *
                             kRankTile +
                         row % kRankTile];
  }

  // Half `half`'s step of the coder, with shared memory and registers alone:
  // everything waits for the state, so what lies between two states is as short
  // as it can be. `table` and `ranges` are addresses of the class's symbols and
  // of the range of its symbol 0.
  __device__ __forceinline__ int32_t Symbol(uint32_t table, uint32_t ranges,
                                            uint32_t half, WordWindow* words) {
    uint32_t address;
    // a & b | c
    asm("lop3.b32 %0, %1, %2, %3, 0xea;"
        : "=r"(address)
        : "r"(x_), "n"(kProbabilityOne - 1), "r"(table));
    const int32_t symbol = SharedSignedByte(address);
    if (half == 0) words->Refill();  // Here, while the symbol is on its way.
    const uint32_t range = SharedWord(ranges + 4 * symbol);
    // Slot and start are each less kProbabilityOne.
    x_ = (range & 0xffff) * (x_ >> kProbabilityBits) +
         ((x_ | ~(kProbabilityOne - 1)) + (range >> 16));
    x_ = words->Feed(x_);
    return symbol;
  }

  // The same with tables in device memory.
  __device__ __forceinline__ uint32_t RareSymbol(int latent_class,
                                                 uint32_t half,
                                                 WordWindow* words) {
    const uint32_t c =
        min(max(latent_class, 0), static_cast<int>(kLatentClasses) - 1);
    const uint32_t slot = x_ & (kProbabilityOne - 1);
    const uint32_t symbol =
        __ldg(params_.tables.symbols + c * kProbabilityOne + slot);
    const uint32_t range = __ldg(params_.tables.ranges + c * 256 + symbol);
    if (half == 0) words->Refill();
    x_ = words->Feed((range & 0xffff) * (x_ >> kProbabilityBits) + slot -
                     (range >> 16));
    return symbol;
  }

  __device__ __forceinline__ void Look(
      const uint4 (&thresholds)[kActivityThresholds / 4],
      const uint32_t* magnitudes) {
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      activities_[h] +=
          (magnitudes[h] << kActivityBits) - (activities_[h] >> kActivityDecay);
      const uint32_t activity = activities_[h] + kActivityPrior;
      uint32_t reached = 0;
#pragma unroll
      for (uint32_t i = 0; i < kActivityThresholds / 4; ++i) {
        const uint4 four = thresholds[i];
        reached += (activity >= four.x) + (activity >= four.y) +
                   (activity >= four.z) + (activity >= four.w);
      }
      Shift(reached, h);
    }
  }

  // Classes of half `half` are those of the rows, less kClassShiftMax, plus
  // `shift`.
  __device__ __forceinline__ void Shift(uint32_t shift, uint32_t half) {
    shifts_[half] = shift;
    const uint32_t entry = shift - kClassShiftMax - kLowestWindowClass;
    table_[half] = symbols_ + entry * kProbabilityOne;
    first_range_[half] = first_ranges_ + entry * sizeof(uint32_t);
  }

  // Columns [first, last), both multiples of 16.
  __device__ __forceinline__ void ClearColumns(uint32_t first, uint32_t last) {
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      for (uint32_t c = first; c < last; c += 16)
        *reinterpret_cast<uint4*>(latents_[h] + c) = {};
    }
  }

  __device__ __forceinline__ void ClearInherited(uint32_t tiles) {
    const uint32_t inherited =
        (params_.inherited_rank + kRankTile - 1) / kRankTile * kRankTile;
    ClearColumns(tiles * kRankTile, inherited);
  }

  const DecodeParams& params_;
  const DecodeImage& image_;
  const DecodeGroup group_;
  const SectionSource source_;
  const SectionTeam* const team_;
  const uint32_t team_index_;
  const uint32_t lane_;
  const size_t section_;
  const uint32_t block_;
  const uint32_t symbols_, first_ranges_;  // Their addresses.
  const bool first_block_;
  SectionBytes bytes_;
  int8_t* latents_[2];  // Rows of the lane's tokens.

  SectionState state_;
  uint32_t rank_ = 0, escape_count_ = 0, escapes_taken_ = 0;
  uint32_t escapes_ = 0, stream_ = 0;  // Where they begin.
  uint32_t x_ = 0;
  uint32_t rest_ = kNoRest;
  // Bit h: the lane's token of that half has a latent above the bound.
  uint32_t above_ = 0;
  uint32_t shifts_[2], table_[2], first_range_[2];  // Shift.
  uint32_t activities_[2] = {};
  uint32_t own_[2] = {}, inherited_[2] = {};
};

}  // namespace latentkv::cuda::decode

#endif  // LATENTKV_KERNELS_CUDA_SECTION_DECODER_CUH_
