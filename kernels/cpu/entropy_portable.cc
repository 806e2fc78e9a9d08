#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {

bool DecodePortable(const EntropyShape& shape, const uint32_t* slots,
                    ByteSpan words, uint32_t* states, uint8_t* symbols) {
  const uint8_t* next = words.data();
  const uint8_t* const end = next + words.size();
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* table =
        slots + size_t{shape.table_of_row[row]} * kProbabilityOne;
    for (uint32_t i = 0; i < shape.row_symbols; ++i) {
      if (!DecodeSymbol(table, &states[i % kEntropyLanes], &next, end,
                        symbols++))
        return false;
    }
  }
  return next == end;
}

}  // namespace latentkv::kernels
