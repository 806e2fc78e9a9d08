#include <immintrin.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/entropy_avx512.h"
#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
bool EncodeAvx512(const EntropyShape& shape, const uint8_t* symbols, Bytes* coded) {
  std::vector<std::array<uint32_t, 256>> ranges(shape.tables.size());
  for (size_t k = 0; k < ranges.size(); ++k) {
    const EntropyTable& table = *shape.tables[k];
    for (uint32_t s = 0; s < 256; ++s) ranges[k][s] = table.frequency[s] | uint32_t{table.start[s]} << 16;
  }
  const size_t count = size_t{shape.rows} * shape.row_symbols;
  // No symbol takes more than one word.
  const auto words = std::make_unique_for_overwrite<uint16_t[]>(count + kLanes);
  uint16_t* const end = words.get() + count + kLanes;
  uint16_t* begin = end;
  const uint8_t* next = symbols + count;
  __m512i low = _mm512_set1_epi32(kEntropyStart), high = low;
  __mmask16 impossible = 0;
  for (uint32_t row = shape.rows; row-- > 0;) {
    const uint32_t* const table = ranges[shape.table_of_row[row]].data();
    for (uint32_t i = 0; i < shape.row_symbols; i += kEntropyLanes) {
      next -= kEntropyLanes;
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
      const __m512i last = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(both, 1));
      const __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(both));
      const __m512i last_range = _mm512_i32gather_epi32(last, table, sizeof(uint32_t));
      const __m512i first_range = _mm512_i32gather_epi32(first, table, sizeof(uint32_t));
      const __m512i frequency_bits = _mm512_set1_epi32(0xffff);
      impossible |= _mm512_testn_epi32_mask(last_range, frequency_bits);
      impossible |= _mm512_testn_epi32_mask(first_range, frequency_bits);
      begin = Put(last_range, &high, begin);
      begin = Put(first_range, &low, begin);
    }
  }
  if (impossible != 0) return false;
  *coded = Stream(low, high, begin, end);
  return true;
}

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
