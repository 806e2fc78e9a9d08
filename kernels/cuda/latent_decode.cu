#include "kernels/cuda/latent_decode.h"

#include "kernels/cuda/check_launch.h"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kWarp = 32, kWarps = 16, kThreads = kWarp * kWarps;
constexpr uint32_t kStart = 1u << 16;        // Every state of the coder lies in [2^16, 2^32).
constexpr uint32_t kEscapeBytes = 6;         // Place u32, latent i16.
constexpr uint32_t kHeaderBytes = 8;
constexpr uint32_t kActivityPrior = 4u << kActivityBits, kActivityDecay = 3;
constexpr int32_t kMagnitudeBound = 256;     // kLatentMagnitudeMax of codec/latent_section.h
constexpr uint32_t kAboveBound = 1u << 31;
constexpr uint32_t kStoredSinks = 1, kKnownSinks = 2, kPredicted = 4;
constexpr uint32_t kPolynomial = 0x82f63b78;

// Classes whose symbols lie in shared memory, as many as fit; and the most entries that the ranges of all classes have:
// symbols up to the largest magnitude, and the escape.
constexpr uint32_t kWindowClasses = 46;
constexpr uint32_t kRangesMax = 7168;

struct Shared {
  uint8_t symbols[kWindowClasses * kProbabilityOne];
  uint32_t ranges[kRangesMax];
  uint32_t classes[kLatentClasses];  // Address of the first range << 8 | symbols but the escape, which comes last.
  uint32_t checksums[4][256];
};
constexpr uint32_t kSharedBytes = sizeof(Shared) + kProbabilityOne;  // Symbols begin at a multiple of kProbabilityOne.
static_assert(kSharedBytes <= 227 * 1024);

// Of addresses in shared memory, which have 32 bits.
__device__ __forceinline__ uint32_t SharedByte(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ uint32_t SharedWord(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}

__device__ void LoadTables(const DecodeTables& tables, uint32_t lowest, Shared* shared) {
  if (threadIdx.x == 0) {
    uint32_t place = 0;
    const uint32_t ranges = static_cast<uint32_t>(__cvta_generic_to_shared(shared->ranges));
    for (uint32_t c = 0; c < kLatentClasses; ++c) {
      const uint32_t escape = 2 * tables.magnitude_max[c] + 1;
      shared->classes[c] = (ranges + 4 * place) << 8 | escape;
      place += escape + 1;
    }
  }
  for (uint32_t i = threadIdx.x; i < 256; i += kThreads) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    shared->checksums[0][i] = crc;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < 256; i += kThreads) {
    uint32_t crc = shared->checksums[0][i];
    for (int k = 1; k < 4; ++k) {
      crc = crc >> 8 ^ shared->checksums[0][crc & 255];
      shared->checksums[k][i] = crc;
    }
  }
  for (uint32_t i = threadIdx.x; i < kLatentClasses * 256; i += kThreads) {
    const uint32_t c = i / 256, symbol = i % 256, escape = shared->classes[c] & 255;
    const uint32_t first = static_cast<uint32_t>(__cvta_generic_to_shared(shared->ranges));
    const uint32_t at = ((shared->classes[c] >> 8) - first) / 4 + (symbol == kEscapeSymbol ? escape : symbol);
    if (symbol < escape || symbol == kEscapeSymbol) shared->ranges[at] = tables.ranges[i];
  }
  const uint32_t count = min(kWindowClasses, kLatentClasses - lowest);
  const uint4* from = reinterpret_cast<const uint4*>(tables.symbols + lowest * kProbabilityOne);
  for (uint32_t i = threadIdx.x; i < count * kProbabilityOne / 16; i += kThreads) {
    const uint32_t escapes = (shared->classes[lowest + i * 16 / kProbabilityOne] & 255) * 0x01010101;
    uint4 symbols = __ldg(from + i);
    symbols = {__vminu4(symbols.x, escapes), __vminu4(symbols.y, escapes), __vminu4(symbols.z, escapes),
               __vminu4(symbols.w, escapes)};
    reinterpret_cast<uint4*>(shared->symbols)[i] = symbols;
  }
  __syncthreads();
}

// The product of two polynomials modulo CRC-32C's, bits reflected.
__device__ uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if (a >> bit & 1) product ^= b;
    b = b >> 1 ^ (b & 1 ? kPolynomial : 0);
  }
  return product;
}

// x^(8 bytes): what the remainder of a run is multiplied by for `bytes` behind it.
__device__ uint32_t Power(uint32_t bytes) {
  uint32_t power = 0x80000000, square = 0x00800000;  // x^0 and x^8.
  for (; bytes != 0; bytes >>= 1) {
    if (bytes & 1) power = Multiply(power, square);
    square = Multiply(square, square);
  }
  return power;
}

// Of a whole section, by a warp: each lane takes a run of it.
__device__ uint32_t Checksum(const Shared& shared, const uint8_t* bytes, uint32_t count, uint32_t lane) {
  const uint32_t run = (count + kWarp * 16 - 1) / (kWarp * 16) * 16;
  const uint32_t first = min(lane * run, count), last = min(first + run, count);
  uint32_t crc = lane == 0 ? 0xffffffff : 0;
  for (uint32_t at = first; at < last; at += 16) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(bytes + at));
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    const uint32_t valid = min(16u, last - at);
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) {
      if (valid >= 4 * w + 4) {
        crc ^= words[w];
        crc = shared.checksums[3][crc & 255] ^ shared.checksums[2][crc >> 8 & 255] ^
              shared.checksums[1][crc >> 16 & 255] ^ shared.checksums[0][crc >> 24];
      } else {
        for (uint32_t b = 4 * w; b < valid; ++b) {
          crc = crc >> 8 ^ shared.checksums[0][(crc ^ words[w] >> 8 * (b % 4)) & 255];
        }
      }
    }
  }
  crc = Multiply(crc, Power(count - last));
  for (int apart = 16; apart > 0; apart /= 2) crc ^= __shfl_xor_sync(~0u, crc, apart);
  return ~crc;
}

// The bytes of a section, which begin anywhere.
__device__ uint32_t Word16(const uint8_t* at) { return __ldg(at) | uint32_t{__ldg(at + 1)} << 8; }

// Words of a stream for a warp: two windows of 32 that lanes exchange, and a third on its way. Behind the last word it
// reads that one again and again: a stream that takes more than it has does not end as it must.
class Words {
 public:
  // There is something to read before `words`.
  __device__ __forceinline__ Words(const uint8_t* words, uint32_t count, uint32_t lane)
      : next_(words + 2 * lane), last_(words + 2 * size_t{count} - 2), count_(count), below_((1u << lane) - 1) {
    Load();
    first_ = low_ | high_ << 8;
    Load();
    second_ = low_ | high_ << 8;
    Load();
  }
  // The word of each lane of `wanting`; lanes take them in order. Refill comes between two.
  __device__ __forceinline__ uint32_t Take(uint32_t wanting) {
    const uint32_t index = at_ + __popc(wanting & below_);
    const uint32_t one = __shfl_sync(~0u, first_, index), two = __shfl_sync(~0u, second_, index);
    at_ += __popc(wanting);
    return index < kWarp ? one : two;
  }
  // A loop of one pass at most: what is skipped by a branch waits for no load, what is predicated does.
  __device__ __forceinline__ void Refill() {
#pragma unroll 1
    while (at_ >= kWarp) {
      at_ -= kWarp;
      windows_ += kWarp;
      first_ = second_;
      second_ = low_ | high_ << 8;
      Load();
    }
  }
  __device__ __forceinline__ bool AtEnd() const { return windows_ + at_ == count_; }

 private:
  // The two bytes are joined when they are needed, so that nobody waits for them here.
  __device__ __forceinline__ void Load() {
    const uint8_t* at = next_ < last_ ? next_ : last_;
    low_ = __ldg(at);
    high_ = __ldg(at + 1);
    next_ += 2 * kWarp;
  }

  const uint8_t* next_;
  const uint8_t* const last_;
  const uint32_t count_, below_;
  uint32_t first_, second_, low_, high_;
  uint32_t at_ = 0, windows_ = 0;
};

// What a lane's escape says, less twice its rest; `fault` is the warp's.
struct Escaped {
  int32_t q;
  int32_t rest;
  uint32_t above;      // Whether it was above the bound, and is 0 now.
  uint32_t fault;
  uint32_t rest_tile;  // Of the rows' tile, from now on.
};

// A tile of rests, all 0. kNoRest if there is none left.
__device__ uint32_t OpenRest(const DecodeParams& params, uint16_t* tile_of_rows, uint32_t lane) {
  uint32_t rest = lane == 0 ? atomicAdd(params.rest_count, 1) : 0;
  rest = __shfl_sync(~0u, rest, 0);
  if (rest >= params.rests_max) return kNoRest;
  uint4* to = reinterpret_cast<uint4*>(params.rests + size_t{rest} * kBlockTokens * kRankTile);
  for (uint32_t i = lane; i < kBlockTokens * kRankTile / 16; i += kWarp) to[i] = {};
  if (lane == 0) *tile_of_rows = rest;
  __syncwarp();
  return rest;
}

// Out of line, as it is rare. `escapes` are those of the warp's symbols, one for each lane in `escaped`; `token` is the
// lane's. Large latents go to a rest at row `row` of its tile.
__device__ __noinline__ Escaped TakeEscapes(const DecodeParams& params, const uint8_t* escapes, uint32_t escaped,
                                            uint32_t row, uint32_t token, uint32_t rest_tile, uint16_t* rest_tiles) {
  const uint32_t lane = token % kWarp;
  const bool mine = escaped >> lane & 1;
  const uint8_t* at = escapes + __popc(escaped & ((1u << lane) - 1)) * kEscapeBytes;
  Escaped result = {0, 0, 0, kFaultNone, rest_tile};
  bool fits = true;
  if (mine) {
    fits = (Word16(at) | Word16(at + 2) << 16) == row * kBlockTokens + token;
    result.q = static_cast<int16_t>(Word16(at + 4));
  }
  if (!__all_sync(~0u, fits)) result.fault = kFaultEscapes;
  result.above = abs(result.q) > kMagnitudeBound;
  if (result.above) result.q = 0;
  const bool large = abs(result.q) > kMagnitudeMax;
  if (!__any_sync(~0u, large) || result.fault != kFaultNone) return result;
  if (rest_tile == kNoRest) result.rest_tile = OpenRest(params, rest_tiles + row / kRankTile, lane);
  if (result.rest_tile == kNoRest) {
    result.fault = kFaultRests;
  } else if (large) {
    result.rest = min(result.q >> 1, 127);
    params.rests[(size_t{result.rest_tile} * kBlockTokens + token) * kRankTile + row % kRankTile] = result.rest;
    result.q -= 2 * result.rest;
  }
  return result;
}

// One section, by a warp. Token t of half h is 32 h + lane.
class SectionDecoder {
 public:
  __device__ __forceinline__ SectionDecoder(const DecodeParams& params, const Shared& shared, uint32_t group, uint32_t block)
      : params_(params),
        shared_(shared),
        group_(params.groups[group]),
        source_(params.sources[size_t{group} * params.blocks + block]),
        lane_(threadIdx.x % kWarp),
        section_(size_t{group} * params.blocks + block),
        block_(block),
        symbols_(static_cast<uint32_t>(__cvta_generic_to_shared(shared.symbols))),
        first_block_(params.first_tokens[block] == 0) {}

  __device__ __forceinline__ void Run() {
    for (uint32_t i = lane_; i < kRankTilesMax; i += kWarp) params_.rest_tiles[section_ * kRankTilesMax + i] = kNoRest;
    __syncwarp();
    state_ = {};
    state_.step = source_.step;
    const uint32_t fault = Decode();
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
    if (source_.payload == nullptr) return kFaultMissing;
    if (Checksum(shared_, source_.payload, source_.bytes, lane_) != source_.crc32c) return kFaultChecksum;
    if (uint32_t fault = Header(); fault != kFaultNone) return fault;
    if (uint32_t fault = Rows(); fault != kFaultNone) return fault;
    // What is stored has no latents.
    bool stored = false;
    for (uint32_t i = 0; i < state_.exact_count; ++i) {
      const uint32_t token = __ldg(source_.payload + kHeaderBytes + i);
      stored |= token % kWarp == lane_ && (token < kWarp ? own_[0] : own_[1]) != 0;
    }
    stored |= first_block_ && lane_ < kSinkTokens && own_[0] != 0;
    return __any_sync(~0u, stored) ? kFaultBounds : kFaultNone;
  }

  // Reads what comes before the symbols, and checks it as ReadLatentSection does.
  __device__ __forceinline__ uint32_t Header() {
    const uint8_t* payload = source_.payload;
    const uint64_t bytes = source_.bytes;
    if (bytes < kHeaderBytes) return kFaultHeader;
    rank_ = Word16(payload);
    const uint32_t flags = __ldg(payload + 2), exact = __ldg(payload + 3);
    escape_count_ = Word16(payload + 4) | Word16(payload + 6) << 16;
    const uint32_t sinks = flags & (kStoredSinks | kKnownSinks);
    const bool sinks_fit = first_block_ ? sinks == kStoredSinks || sinks == kKnownSinks : sinks == 0;
    if (rank_ > group_.rank || (flags & ~(sinks | kPredicted)) != 0 || !sinks_fit || exact > kBlockTokens ||
        escape_count_ > rank_ * kBlockTokens) {
      return kFaultHeader;
    }
    const uint64_t escapes = kHeaderBytes + exact + uint64_t{exact} * group_.exact_token_bytes +
                             (sinks == kStoredSinks ? group_.sink_bytes : 0);
    const uint64_t stream = escapes + uint64_t{escape_count_} * kEscapeBytes;
    if (stream > bytes) return kFaultHeader;
    if (bytes - stream < kWarp * sizeof(uint32_t) || (bytes - stream) % 2 != 0) return kFaultStream;
    bool ordered = true;
    for (uint32_t i = lane_; i < exact; i += kWarp) {
      const uint32_t token = __ldg(payload + kHeaderBytes + i);
      ordered &= token < kBlockTokens && (i == 0 || token > __ldg(payload + kHeaderBytes + i - 1));
    }
    if (!__all_sync(~0u, ordered)) return kFaultHeader;
    if (sinks == kKnownSinks && source_.known_sinks == 0) return kFaultSinks;
    state_.exact_count = exact;
    state_.sinks = sinks;
    state_.predicted = (flags & kPredicted) != 0;
    escapes_ = payload + escapes;
    stream_ = payload + stream;
    word_count_ = (bytes - stream) / 2 - kWarp * 2;
    return kFaultNone;
  }

  __device__ __forceinline__ uint32_t Rows() {
    const uint8_t* at = stream_ + lane_ * sizeof(uint32_t);
    x_ = Word16(at) | Word16(at + 2) << 16;
    if (__any_sync(~0u, x_ < kStart)) return kFaultStream;
    Words words(stream_ + kWarp * sizeof(uint32_t), word_count_, lane_);
    const uint32_t fault = InWindow() ? AllRows<true>(&words) : AllRows<false>(&words);
    if (fault != kFaultNone) return fault;
    if (!words.AtEnd() || __any_sync(~0u, x_ != kStart)) return kFaultStream;
    if (escapes_taken_ != escape_count_) return kFaultEscapes;
    state_.rank_tiles = (rank_ + kRankTile - 1) / kRankTile;
    const uint32_t done = (rank_ + kContextRows - 1) / kContextRows * kContextRows;
    ClearColumns(done, state_.rank_tiles * kRankTile);
    return kFaultNone;
  }

  // Whether shared memory has the symbols of all classes that may be asked for; classes of rows descend.
  __device__ __forceinline__ bool InWindow() const {
    if (rank_ == 0) return true;
    const int greatest = __ldg(source_.model.classes), least = __ldg(source_.model.classes + rank_ - 1);
    const int shift = kClassShiftMax, classes = kLatentClasses, lowest = params_.lowest_class;
    return max(least - shift, 0) >= lowest && min(greatest + shift, classes - 1) < lowest + int{kWindowClasses};
  }

  template <bool kInWindow>
  __device__ __forceinline__ uint32_t AllRows(Words* words) {
    for (uint32_t row = 0; row < rank_; row += kContextRows) {
      if (row % kRankTile == 0) rest_ = kNoRest;
      const uint32_t fault = row + kContextRows <= rank_ ? SixteenRows<kInWindow, true>(row, words)
                                                         : SixteenRows<kInWindow, false>(row, words);
      if (fault != kFaultNone) return fault;
    }
    return kFaultNone;
  }

  // All of them, or those that there are.
  template <bool kInWindow, bool kAll>
  __device__ __forceinline__ uint32_t SixteenRows(uint32_t row, Words* words) {
    uint4 classes = __ldg(reinterpret_cast<const uint4*>(source_.model.classes + row));
    uint32_t symbols[2][4] = {};  // Four rows a word.
    // Not unrolled: the instruction cache holds this loop, and not four of it.
#pragma unroll 1
    for (uint32_t i = 0; i < 4; ++i) {
      uint32_t four[2] = {};
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        if (!kAll && row + 4 * i + j >= rank_) break;
        const int row_class = classes.x >> 8 * j & 255;
#pragma unroll
        for (uint32_t h = 0; h < 2; ++h) four[h] |= Symbol<kInWindow>(row_class + shifts_[h], words) << 8 * j;
      }
      classes = {classes.y, classes.z, classes.w, 0};
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        symbols[h][0] = symbols[h][1], symbols[h][1] = symbols[h][2], symbols[h][2] = symbols[h][3];
        symbols[h][3] = four[h];
      }
    }
    uint32_t magnitudes[2], escapes = 0;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      magnitudes[h] = 0;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        // Zigzag, four at a time. An escape becomes -128, which no symbol does, and counts 128.
        const uint32_t halves = symbols[h][i] >> 1 & 0x7f7f7f7f, odd = symbols[h][i] & 0x01010101;
        magnitudes[h] = __dp4a(halves + odd, 0x01010101u, magnitudes[h]);
        escapes |= __vcmpeq4(symbols[h][i], 0xffffffff);
        symbols[h][i] = halves ^ odd * 255;
      }
    }
    uint32_t sums[2] = {magnitudes[0], magnitudes[1]};
    if (__any_sync(~0u, escapes != 0)) {
      if (uint32_t fault = Escapes(row, symbols, sums); fault != kFaultNone) return fault;
    }
    if (row < params_.inherited_rank) AddInherited(row, symbols, sums);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      own_[h] += sums[h];
      *reinterpret_cast<uint4*>(Latents(h) + row) = {symbols[h][0], symbols[h][1], symbols[h][2], symbols[h][3]};
    }
    if (kAll) Look(row / kContextRows, magnitudes);
    return kFaultNone;
  }

  // Puts in `latents` and `sums` of magnitudes what the section says in the place of escapes.
  __device__ __forceinline__ uint32_t Escapes(uint32_t row, uint32_t (&latents)[2][4], uint32_t (&sums)[2]) {
    uint32_t fault = kFaultNone;
#pragma unroll
    for (uint32_t j = 0; j < kContextRows; ++j) {
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t shift = 8 * (j % 4);
        const uint32_t escaped = __ballot_sync(~0u, (latents[h][j / 4] >> shift & 255) == 128);
        if (escaped == 0 || fault != kFaultNone) continue;
        const uint32_t count = __popc(escaped);
        if (escapes_taken_ + count > escape_count_) {
          fault = kFaultEscapes;
          continue;
        }
        const Escaped found = TakeEscapes(params_, escapes_ + size_t{escapes_taken_} * kEscapeBytes, escaped, row + j,
                                          h * kWarp + lane_, rest_, params_.rest_tiles + section_ * kRankTilesMax);
        escapes_taken_ += count;
        rest_ = found.rest_tile;
        state_.rests |= rest_ != kNoRest;
        fault = found.fault;
        if (escaped >> lane_ & 1) {
          latents[h][j / 4] = (latents[h][j / 4] & ~(255u << shift)) | (found.q & 255) << shift;
          sums[h] += abs(found.q + 2 * found.rest) - 128;
          above_ |= found.above << h;
        }
      }
    }
    return fault;
  }

  // Of rows below the inherited rank.
  __device__ __forceinline__ void AddInherited(uint32_t row, const uint32_t (&latents)[2][4],
                                               const uint32_t (&sums)[2]) {
    const uint32_t rows = params_.inherited_rank - row;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      if (rows >= kContextRows) {
        inherited_[h] += sums[h];
        continue;
      }
      for (uint32_t j = 0; j < rows; ++j) {
        const int32_t q = static_cast<int8_t>((j < 8 ? (j < 4 ? latents[h][0] : latents[h][1])
                                                     : (j < 12 ? latents[h][2] : latents[h][3])) >> 8 * (j % 4));
        inherited_[h] += abs(q + 2 * RestAt(row + j, h));
      }
    }
  }

  // Of this lane's token.
  __device__ __forceinline__ int32_t RestAt(uint32_t row, uint32_t half) const {
    if (rest_ == kNoRest) return 0;
    return params_.rests[(size_t{rest_} * kBlockTokens + half * kWarp + lane_) * kRankTile + row % kRankTile];
  }

  // Shared memory and registers alone, or tables in device memory.
  template <bool kInWindow>
  __device__ __forceinline__ uint32_t Symbol(int latent_class, Words* words) {
    const uint32_t c = min(max(latent_class, 0), static_cast<int>(kLatentClasses) - 1);
    const uint32_t info = shared_.classes[c], escape = info & 255, ranges = info >> 8;
    const uint32_t slot = x_ & (kProbabilityOne - 1);
    // Of the class's symbols; the escape is the last.
    uint32_t index;
    if (kInWindow) {
      index = SharedByte(symbols_ + (c - params_.lowest_class) * kProbabilityOne | slot);
    } else {
      index = min(uint32_t{__ldg(params_.tables.symbols + c * kProbabilityOne + slot)}, escape);
    }
    words->Refill();  // Here, while the symbol is on its way.
    const uint32_t range = SharedWord(ranges + 4 * index);
    x_ = (range & 0xffff) * (x_ >> kProbabilityBits) + slot - (range >> 16);
    const bool wants = x_ < kStart;
    const uint32_t word = words->Take(__ballot_sync(~0u, wants));
    if (wants) x_ = x_ << 16 | word;
    return index == escape ? kEscapeSymbol : index;
  }

  __device__ __forceinline__ void Look(uint32_t look, const uint32_t* magnitudes) {
    const uint4* thresholds = reinterpret_cast<const uint4*>(source_.model.thresholds + look * kActivityThresholds);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      activities_[h] += (magnitudes[h] << kActivityBits) - (activities_[h] >> kActivityDecay);
      shifts_[h] = -static_cast<int>(kClassShiftMax);
    }
#pragma unroll
    for (uint32_t i = 0; i < kActivityThresholds / 4; ++i) {
      const uint4 four = __ldg(thresholds + i);
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t activity = activities_[h] + kActivityPrior;
        shifts_[h] += (activity >= four.x) + (activity >= four.y) + (activity >= four.z) + (activity >= four.w);
      }
    }
  }

  __device__ __forceinline__ int8_t* Latents(uint32_t half) const {
    return params_.latents + (size_t{block_} * kBlockTokens + half * kWarp + lane_) * params_.latent_stride +
           group_.column;
  }

  // Columns [first, last), both multiples of 16.
  __device__ __forceinline__ void ClearColumns(uint32_t first, uint32_t last) {
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      for (uint32_t c = first; c < last; c += 16) *reinterpret_cast<uint4*>(Latents(h) + c) = {};
    }
  }

  __device__ __forceinline__ void ClearInherited(uint32_t tiles) {
    const uint32_t inherited = (params_.inherited_rank + kRankTile - 1) / kRankTile * kRankTile;
    ClearColumns(tiles * kRankTile, inherited);
  }

  const DecodeParams& params_;
  const Shared& shared_;
  const DecodeGroup group_;
  const SectionSource source_;
  const uint32_t lane_;
  const size_t section_;
  const uint32_t block_;
  const uint32_t symbols_;  // Their address.
  const bool first_block_;

  SectionState state_;
  uint32_t rank_ = 0, escape_count_ = 0, escapes_taken_ = 0, word_count_ = 0;
  const uint8_t* escapes_ = nullptr;
  const uint8_t* stream_ = nullptr;
  uint32_t x_ = 0;
  uint32_t rest_ = kNoRest;
  uint32_t above_ = 0;  // Bit h: the lane's token of that half has a latent above the bound.
  int shifts_[2] = {};
  uint32_t activities_[2] = {};
  uint32_t own_[2] = {}, inherited_[2] = {};
};

__global__ void __launch_bounds__(kThreads, 1) DecodeKernel(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t begin = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  Shared* shared = reinterpret_cast<Shared*>(memory + (kProbabilityOne - begin % kProbabilityOne) % kProbabilityOne);
  LoadTables(params.tables, params.lowest_class, shared);
  const uint32_t count = (params.last_group - params.first_group) * params.blocks;
  // Neighbouring sections go to different multiprocessors: few of them spread over all.
  for (uint32_t i = threadIdx.x / kWarp * gridDim.x + blockIdx.x; i < count; i += kWarps * gridDim.x) {
    SectionDecoder(params, *shared, params.first_group + i / params.blocks, i % params.blocks).Run();
  }
}

}  // namespace

absl::Status DecodeSections(const DecodeParams& params, uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.first_group == params.last_group) return absl::OkStatus();
  const cudaError_t error =
      cudaFuncSetAttribute(DecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return CudaStatus(error, "asking for shared memory");
  DecodeKernel<<<multiprocessors, kThreads, kSharedBytes, stream>>>(params);
  return LaunchStatus("decoding sections on the device");
}

}  // namespace latentkv::cuda
