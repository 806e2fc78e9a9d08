// The decoders behind DecodeSymbols, one a backend. Each starts from the states
// of the 32 lanes, leaves the final ones in `states`, and returns whether
// exactly all of `words` was used; it reads nothing else.
#ifndef LATENTKV_KERNELS_CPU_ENTROPY_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_ENTROPY_BACKENDS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/rans.h"
#include "kernels/entropy.h"

namespace latentkv::kernels {

// One word a lane.
inline constexpr size_t kGroupBytesMax = kEntropyLanes * sizeof(uint16_t);

// `slots` [tables][kProbabilityOne] are those of MakeSlots.
bool DecodePortable(const EntropyShape& shape, const uint32_t* slots,
                    ByteSpan words, uint32_t* states, uint8_t* symbols);
bool DecodeAvx2(const EntropyShape& shape, const uint32_t* slots,
                ByteSpan words, uint32_t* states, uint8_t* symbols);
bool DecodeAvx512(const EntropyShape& shape, const uint32_t* slots,
                  ByteSpan words, uint32_t* states, uint8_t* symbols);

// Exponents of a channel lie close together: tables without symbols from here
// on fit registers.
inline constexpr uint32_t kFewSymbols = 32;
// If SymbolsAreFew: looks symbols up in registers.
bool DecodeFewAvx512(const EntropyShape& shape, ByteSpan words,
                     uint32_t* states, uint8_t* symbols);

// What RansEncoder gives; false if a symbol has frequency 0, then `coded` stays
// as it is.
bool EncodeAvx512(const EntropyShape& shape, const uint8_t* symbols,
                  Bytes* coded);

// Unnamed: each backend compiles this for its own instruction set, and the
// linker must not merge them.
namespace {

inline bool SymbolsAreFew(const EntropyShape& shape) {
  for (const EntropyTable* table : shape.tables) {
    if (table->start[kFewSymbols] != kProbabilityOne) return false;
  }
  return true;
}

// Where the next word lies, for decoders that load 32 words and use some: near
// the end the rest moves to a padded copy.
class WordCursor {
 public:
  explicit WordCursor(ByteSpan words)
      : next_(words.data()), end_(words.data() + words.size()) {}
  // Call before each group of 32 symbols; after true, kGroupBytesMax bytes at
  // next() can be read. False: words used up that were not there.
  bool Prepare() {
    if (end_ - next_ >= static_cast<ptrdiff_t>(kGroupBytesMax)) [[likely]]
      return true;
    if (in_tail_) return next_ <= end_;
    const size_t rest = end_ - next_;
    if (rest > 0) std::memcpy(tail_, next_, rest);
    std::memset(tail_ + rest, 0, sizeof(tail_) - rest);
    next_ = tail_;
    end_ = tail_ + rest;
    in_tail_ = true;
    return true;
  }
  const uint8_t* next() const { return next_; }
  void Advance(uint32_t words) { next_ += words * sizeof(uint16_t); }
  bool AtEnd() const { return next_ == end_; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  bool in_tail_ = false;
  uint8_t tail_[2 * kGroupBytesMax];
};

}  // namespace

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ENTROPY_BACKENDS_H_
