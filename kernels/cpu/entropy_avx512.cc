#include <immintrin.h>

#include "kernels/cpu/entropy_avx512.h"
#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
bool DecodeAvx512(const EntropyShape& shape, ByteSpan words, uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  __m512i low = _mm512_loadu_si512(states), high = _mm512_loadu_si512(states + 16);
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* slots = shape.tables[shape.table_of_row[row]]->slot.data();
    for (uint32_t i = 0; i < shape.row_symbols; i += kEntropyLanes, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      const __m512i none = _mm512_setzero_si512();
      const __mmask16 low_wants = Step(slots, none, &low, symbols), high_wants = Step(slots, none, &high, symbols + 16);
      const uint32_t low_count = _mm_popcnt_u32(low_wants);
      Refill(low_wants, cursor.next(), &low);
      Refill(high_wants, cursor.next() + 2 * low_count, &high);
      cursor.Advance(low_count + _mm_popcnt_u32(high_wants));
    }
  }
  _mm512_storeu_si512(states, low);
  _mm512_storeu_si512(states + 16, high);
  return cursor.AtEnd();
}

}  // namespace latentkv::kernels
