#include <immintrin.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/entropy_avx512.h"
#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
namespace {

constexpr size_t kLanes = 16;

// Encodes one symbol in each of 16 lanes, whose range is frequency | start << 16, and returns where the words of those
// that were full begin, which end at `end`; 16 words before `end` are written over.
inline uint16_t* Put(__m512i range, __m512i* x, uint16_t* end) {
  constexpr int kDown = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  const __m512i frequency = _mm512_and_si512(range, _mm512_set1_epi32(0xffff));
  const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(*x, 32 - kProbabilityBits), frequency);
  const uint32_t count = _mm_popcnt_u32(full);
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, *x));
  const __m256i upper = _mm256_add_epi16(_mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                         _mm256_set1_epi16(static_cast<int16_t>(count)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(end - kLanes), _mm256_permutexvar_epi16(upper, words));
  *x = _mm512_mask_srli_epi32(*x, full, *x, kWordBits);
  // The quotient is below 2^20: in floats, rounded down all the way, it is right or one too small.
  const __m512i quotient = _mm512_cvttps_epi32(
      _mm512_div_round_ps(_mm512_cvt_roundepu32_ps(*x, kDown), _mm512_cvtepi32_ps(frequency), kDown));
  const __m512i rest = _mm512_sub_epi32(*x, _mm512_mullo_epi32(quotient, frequency));
  *x = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, kProbabilityBits), rest),
                        _mm512_srli_epi32(range, 16));
  const __mmask16 small = _mm512_cmpge_epu32_mask(rest, frequency);
  *x = _mm512_mask_add_epi32(*x, small, *x, _mm512_sub_epi32(_mm512_set1_epi32(kProbabilityOne), frequency));
  return end - count;
}

}  // namespace

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
  coded->resize(kStateBytes + (end - begin) * sizeof(uint16_t));
  _mm512_storeu_si512(coded->data(), low);
  _mm512_storeu_si512(coded->data() + sizeof(low), high);
  if (begin != end) std::memcpy(coded->data() + kStateBytes, begin, coded->size() - kStateBytes);
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
