#include "kernels/cpu/entropy_avx2.h"

#include <immintrin.h>

#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
bool DecodeAvx2(const EntropyShape& shape, const uint32_t* slots,
                ByteSpan words, uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  __m256i x[kVectors], out[kVectors];
  for (uint32_t v = 0; v < kVectors; ++v)
    x[v] = _mm256_loadu_si256(reinterpret_cast<__m256i*>(states + 8 * v));
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* table =
        slots + size_t{shape.table_of_row[row]} * kProbabilityOne;
    for (uint32_t i = 0; i < shape.row_symbols;
         i += kEntropyLanes, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      for (uint32_t v = 0; v < kVectors; ++v)
        out[v] = Step(table, _mm256_setzero_si256(), &x[v]);
      for (uint32_t v = 0; v < kVectors; ++v)
        cursor.Advance(Refill(cursor.next(), &x[v]));
      StoreSymbols(out, symbols);
    }
  }
  for (uint32_t v = 0; v < kVectors; ++v)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8 * v), x[v]);
  return cursor.AtEnd();
}

}  // namespace latentkv::kernels
