// The stream of words and states that all entropy coders of kernels/ share:
// docs/formats/entropy.md.
#ifndef LATENTKV_KERNELS_CPU_RANS_H_
#define LATENTKV_KERNELS_CPU_RANS_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "kernels/entropy.h"

namespace latentkv::kernels {

// Every state lies in [2^16, 2^32).
inline constexpr uint32_t kEntropyStart = 1u << 16;
inline constexpr uint32_t kWordBits = 16;
inline constexpr size_t kStateBytes = kEntropyLanes * sizeof(uint32_t);

// Takes symbols backwards: the last that the decoder will see comes first.
class RansEncoder {
 public:
  RansEncoder() { states_.fill(kEntropyStart); }
  // `frequency` above 0.
  void Put(uint32_t lane, uint32_t frequency, uint32_t start) {
    uint32_t& x = states_[lane];
    // Below frequency << 20 the step that follows cannot leave 32 bits.
    if (x >= uint64_t{frequency} << (32 - kProbabilityBits)) {
      words_.push_back(static_cast<uint16_t>(x));
      x >>= kWordBits;
    }
    x = ((x / frequency) << kProbabilityBits) + x % frequency + start;
  }
  // States, then words in the decoder's order.
  Bytes Finish() const;

 private:
  std::array<uint32_t, kEntropyLanes> states_;
  std::vector<uint16_t> words_;  // Last first.
};

using RansStates = std::array<uint32_t, kEntropyLanes>;

// Decodes one symbol under a table's `slots`, moving the lane's state and, if
// it wants a word, `next`. False if there is none left. Unnamed: each backend
// compiles this for its own instruction set, and the linker must not merge
// them.
namespace {

inline bool DecodeSymbol(const uint32_t* slots, uint32_t* state,
                         const uint8_t** next, const uint8_t* end,
                         uint8_t* symbol) {
  uint32_t x = *state;
  const uint32_t slot = slots[x & (kProbabilityOne - 1)];
  *symbol = static_cast<uint8_t>(slot);
  x = ((slot >> 8 & 0xfff) + 1) * (x >> kProbabilityBits) + (slot >> 20);
  if (x < kEntropyStart) {
    if (*next == end) return false;
    uint16_t word;
    std::memcpy(&word, *next, sizeof(word));
    *next += sizeof(word);
    x = x << kWordBits | word;
  }
  *state = x;
  return true;
}

}  // namespace

// The words of `coded`, and its states. DataLoss for bytes that no encoder
// writes.
absl::StatusOr<ByteSpan> OpenStream(ByteSpan coded, RansStates* states);
// DataLoss unless a decoder used all words (`exact`) and came to the start
// state in every lane.
absl::Status CheckStreamEnd(bool exact, const RansStates& states);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_RANS_H_
