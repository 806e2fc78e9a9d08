#include "kernels/cpu/entropy_avx512.h"

#include <immintrin.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cpu/entropy_backends.h"

namespace latentkv::kernels {
namespace {

// A table of few symbols for a decoder, whose slots are u16 in 32 lanes: the
// symbol is the number of starts, the first apart, that are not above the slot,
// found in two steps of a radix of kRadix.
struct Search {
  static constexpr uint32_t kRadix = 4, kSteps = kFewSymbols / kRadix - 1;
  __m512i step[kSteps];  // start[kRadix * (k + 1)] in every lane.
  // start[kRadix * i + k + 1] in lane i, below kFewSymbols / kRadix.
  __m512i within[kRadix - 1];
  __m512i frequency, start;  // Of symbol i in lane i.

  explicit Search(const EntropyTable& table)
      : frequency(_mm512_loadu_si512(table.frequency.data())),
        start(_mm512_loadu_si512(table.start.data())) {
    for (uint32_t k = 0; k < kSteps; ++k)
      step[k] = _mm512_set1_epi16(table.start[kRadix * (k + 1)]);
    alignas(64) uint16_t lanes[kRadix - 1][32] = {};
    for (uint32_t i = 0; i < kFewSymbols; ++i) {
      if (i % kRadix != 0) lanes[i % kRadix - 1][i / kRadix] = table.start[i];
    }
    for (uint32_t k = 0; k < kRadix - 1; ++k)
      within[k] = _mm512_load_si512(lanes[k]);
  }

  // Symbols are below kRadix * (used_steps + 1).
  template <uint32_t used_steps>
  __m512i Find(__m512i slot) const {
    const __m512i one = _mm512_set1_epi16(1);
    __m512i group = _mm512_setzero_si512();
    for (uint32_t k = 0; k < used_steps; ++k) {
      group = _mm512_mask_add_epi16(
          group, _mm512_cmpge_epu16_mask(slot, step[k]), group, one);
    }
    __m512i symbol = _mm512_slli_epi16(group, 2);
    static_assert(kRadix == 4);
    for (const __m512i& bounds : within) {
      const __mmask32 above = _mm512_cmpge_epu16_mask(
          slot, _mm512_permutexvar_epi16(group, bounds));
      symbol = _mm512_mask_add_epi16(symbol, above, symbol, one);
    }
    return symbol;
  }
};

// Ranges and their inverses of a table of few symbols.
struct FewRanges {
  __m512i range[2];
  __m512 inverse[2];
  explicit FewRanges(const uint32_t* ranges) {
    for (int i = 0; i < 2; ++i) {
      range[i] = _mm512_loadu_si512(ranges + kLanes * i);
      inverse[i] = Inverse(range[i]);
    }
  }
};

template <uint32_t used_steps>
bool DecodeFew(const EntropyShape& shape, absl::Span<const Search> tables,
               ByteSpan words, uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  __m512i low = _mm512_loadu_si512(states),
          high = _mm512_loadu_si512(states + 16);
  const __m512i lower = _mm512_set1_epi32(0xffff),
                full = _mm512_set1_epi32(kEntropyStart);
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const Search& table = tables[shape.table_of_row[row]];
    for (uint32_t i = 0; i < shape.row_symbols;
         i += kEntropyLanes, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      // The lane of `low` in the even places, that of `high` in the odd ones.
      const __m512i both =
          _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
      const __m512i slot =
          _mm512_and_si512(both, _mm512_set1_epi16(kProbabilityOne - 1));
      const __m512i symbol = table.Find<used_steps>(slot);
      const __m512i frequency =
          _mm512_permutexvar_epi16(symbol, table.frequency);
      const __m512i offset =
          _mm512_sub_epi16(slot, _mm512_permutexvar_epi16(symbol, table.start));
      const auto advance = [](__m512i x, __m512i f, __m512i rest) {
        return _mm512_add_epi32(
            _mm512_mullo_epi32(_mm512_srli_epi32(x, kProbabilityBits), f),
            rest);
      };
      low = advance(low, _mm512_and_si512(frequency, lower),
                    _mm512_and_si512(offset, lower));
      high = advance(high, _mm512_srli_epi32(frequency, 16),
                     _mm512_srli_epi32(offset, 16));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols),
                       _mm512_cvtepi32_epi8(symbol));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + 16),
                       _mm512_cvtepi32_epi8(_mm512_srli_epi32(symbol, 16)));
      const __mmask16 low_wants = _mm512_cmplt_epu32_mask(low, full),
                      high_wants = _mm512_cmplt_epu32_mask(high, full);
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

}  // namespace

bool EncodeAvx512(const EntropyShape& shape, const uint8_t* symbols,
                  Bytes* coded) {
  std::vector<std::array<uint32_t, 256>> ranges(shape.tables.size());
  std::vector<FewRanges> few;
  for (size_t k = 0; k < ranges.size(); ++k) {
    const EntropyTable& table = *shape.tables[k];
    for (uint32_t s = 0; s < 256; ++s)
      ranges[k][s] = table.frequency[s] | uint32_t{table.start[s]} << 16;
    few.emplace_back(ranges[k].data());
  }
  const bool are_few = SymbolsAreFew(shape);
  const size_t count = size_t{shape.rows} * shape.row_symbols;
  // No symbol takes more than one word.
  const auto words = std::make_unique_for_overwrite<uint16_t[]>(count + kLanes);
  uint16_t* const end = words.get() + count + kLanes;
  uint16_t* begin = end;
  const uint8_t* next = symbols + count;
  __m512i low = _mm512_set1_epi32(kEntropyStart), high = low;
  __mmask16 impossible = 0;
  const __m512i frequency_bits = _mm512_set1_epi32(0xffff),
                far = _mm512_set1_epi32(~(kFewSymbols - 1));
  for (uint32_t row = shape.rows; row-- > 0;) {
    const uint32_t* const table = ranges[shape.table_of_row[row]].data();
    const FewRanges& in_registers = few[shape.table_of_row[row]];
    for (uint32_t i = 0; i < shape.row_symbols; i += kEntropyLanes) {
      next -= kEntropyLanes;
      const __m256i both =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(next));
      const __m512i last =
          _mm512_cvtepu8_epi32(_mm256_extracti128_si256(both, 1));
      const __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(both));
      __m512i last_range, first_range;
      __m512 last_inverse, first_inverse;
      if (are_few) {
        impossible |= _mm512_test_epi32_mask(_mm512_or_si512(first, last), far);
        last_range = _mm512_permutex2var_epi32(in_registers.range[0], last,
                                               in_registers.range[1]);
        first_range = _mm512_permutex2var_epi32(in_registers.range[0], first,
                                                in_registers.range[1]);
        last_inverse = _mm512_permutex2var_ps(in_registers.inverse[0], last,
                                              in_registers.inverse[1]);
        first_inverse = _mm512_permutex2var_ps(in_registers.inverse[0], first,
                                               in_registers.inverse[1]);
      } else {
        last_range = _mm512_i32gather_epi32(last, table, sizeof(uint32_t));
        first_range = _mm512_i32gather_epi32(first, table, sizeof(uint32_t));
        last_inverse = Inverse(last_range);
        first_inverse = Inverse(first_range);
      }
      impossible |= _mm512_testn_epi32_mask(last_range, frequency_bits);
      impossible |= _mm512_testn_epi32_mask(first_range, frequency_bits);
      begin = Put(last_range, last_inverse, &high, begin);
      begin = Put(first_range, first_inverse, &low, begin);
    }
  }
  if (impossible != 0) return false;
  *coded = Stream(low, high, begin, end);
  return true;
}

bool DecodeFewAvx512(const EntropyShape& shape, ByteSpan words,
                     uint32_t* states, uint8_t* symbols) {
  std::vector<Search> tables;
  tables.reserve(shape.tables.size());
  // Half of them is the rule.
  constexpr uint32_t kHalf = kFewSymbols / 2;
  bool in_half = true;
  for (const EntropyTable* table : shape.tables) {
    tables.emplace_back(*table);
    in_half = in_half && table->start[kHalf] == kProbabilityOne;
  }
  auto* decode = in_half ? &DecodeFew<kHalf / Search::kRadix - 1>
                         : &DecodeFew<Search::kSteps>;
  return decode(shape, tables, words, states, symbols);
}

bool DecodeAvx512(const EntropyShape& shape, const uint32_t* slots,
                  ByteSpan words, uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  __m512i low = _mm512_loadu_si512(states),
          high = _mm512_loadu_si512(states + 16);
  for (uint32_t row = 0; row < shape.rows; ++row) {
    const uint32_t* table =
        slots + size_t{shape.table_of_row[row]} * kProbabilityOne;
    for (uint32_t i = 0; i < shape.row_symbols;
         i += kEntropyLanes, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      const __m512i none = _mm512_setzero_si512();
      const __mmask16 low_wants = Step(table, none, &low, symbols),
                      high_wants = Step(table, none, &high, symbols + 16);
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
