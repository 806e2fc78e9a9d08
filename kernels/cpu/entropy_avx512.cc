#include <immintrin.h>

#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
namespace {

// Decodes one symbol in each of 16 lanes; returns the mask of lanes that want a word.
inline __mmask16 Step(const uint32_t* slots, __m512i* x, uint8_t* symbols) {
  const __m512i index = _mm512_and_si512(*x, _mm512_set1_epi32(kProbabilityOne - 1));
  const __m512i slot = _mm512_i32gather_epi32(index, slots, 4);
  const __m512i frequency = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(slot, 8), _mm512_set1_epi32(0xfff)),
                                             _mm512_set1_epi32(1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols), _mm512_cvtepi32_epi8(slot));
  *x = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(*x, kProbabilityBits)),
                        _mm512_srli_epi32(slot, 20));
  return _mm512_cmplt_epu32_mask(*x, _mm512_set1_epi32(kEntropyStart));
}

inline void Refill(__mmask16 wanting, const uint8_t* words, __m512i* x) {
  const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
  const __m512i spread = _mm512_maskz_expand_epi32(wanting, next);
  *x = _mm512_mask_or_epi32(*x, wanting, _mm512_slli_epi32(*x, 16), spread);
}

}  // namespace

bool DecodeAvx512(const EntropyShape& shape, ByteSpan words, uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  __m512i low = _mm512_loadu_si512(states), high = _mm512_loadu_si512(states + 16);
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* slots = shape.tables[shape.table_of_row[row]]->slot.data();
    for (uint32_t i = 0; i < shape.row_symbols; i += kEntropyLanes, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      const __mmask16 low_wants = Step(slots, &low, symbols), high_wants = Step(slots, &high, symbols + 16);
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
