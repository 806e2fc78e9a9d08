#include <cstring>

#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {

bool DecodePortable(const EntropyShape& shape, ByteSpan words, uint32_t* states, uint8_t* symbols) {
  const uint8_t* next = words.data();
  const uint8_t* const end = next + words.size();
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* slots = shape.tables[shape.table_of_row[row]]->slot.data();
    for (uint32_t i = 0; i < shape.row_symbols; ++i) {
      uint32_t x = states[i % kEntropyLanes];
      const uint32_t slot = slots[x & (kProbabilityOne - 1)];
      *symbols++ = static_cast<uint8_t>(slot);
      x = ((slot >> 8 & 0xfff) + 1) * (x >> kProbabilityBits) + (slot >> 20);
      if (x < kEntropyStart) {
        if (next == end) return false;
        uint16_t word;
        std::memcpy(&word, next, sizeof(word));
        next += sizeof(word);
        x = x << 16 | word;
      }
      states[i % kEntropyLanes] = x;
    }
  }
  return next == end;
}

}  // namespace latentkv::kernels
