#include <immintrin.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/cpu/entropy_avx512.h"
#include "kernels/cpu/entropy_backends.h"
#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"
#include "kernels/latents.h"

namespace latentkv::kernels {
namespace {

constexpr uint32_t kVectors = kBlockTokens / 16;
static_assert(kVectors == 4 && kEntropyLanes == 32);

// Activities of 64 tokens, and the shifts that follow from them.
struct Activities {
  __m512i activity[kVectors], magnitude[kVectors], shift[kVectors];
  Activities() {
    for (uint32_t v = 0; v < kVectors; ++v)
      activity[v] = magnitude[v] = shift[v] = _mm512_setzero_si512();
  }
  void Look(const ExpectedActivity& expected) {
    const auto thresholds = expected.Thresholds();
    for (uint32_t v = 0; v < kVectors; ++v) {
      activity[v] = _mm512_add_epi32(
          _mm512_sub_epi32(
              activity[v],
              _mm512_srli_epi32(activity[v], ExpectedActivity::kDecayBits)),
          _mm512_slli_epi32(magnitude[v], kActivityBits));
      magnitude[v] = _mm512_setzero_si512();
      const __m512i compared = _mm512_add_epi32(
          activity[v], _mm512_set1_epi32(ExpectedActivity::kPrior));
      __m512i count = _mm512_set1_epi32(-static_cast<int>(kClassShiftMax));
      for (uint32_t threshold : thresholds) {
        const __mmask16 reached =
            _mm512_cmpge_epu32_mask(compared, _mm512_set1_epi32(threshold));
        count =
            _mm512_mask_add_epi32(count, reached, count, _mm512_set1_epi32(1));
      }
      shift[v] = count;
    }
  }
};

// Classes of 16 tokens.
inline __m512i Classes(uint8_t latent_class, __m512i shift) {
  const __m512i shifted =
      _mm512_add_epi32(_mm512_set1_epi32(latent_class), shift);
  return _mm512_min_epi32(_mm512_max_epi32(shifted, _mm512_setzero_si512()),
                          _mm512_set1_epi32(kLatentClasses - 1));
}

// Where their tables begin.
inline __m512i TableOffsets(uint8_t latent_class, __m512i shift) {
  return _mm512_slli_epi32(Classes(latent_class, shift), kProbabilityBits);
}

inline void AddMagnitudes(__m512i symbols, __m512i* magnitude) {
  *magnitude = _mm512_add_epi32(
      *magnitude,
      _mm512_srli_epi32(_mm512_add_epi32(symbols, _mm512_set1_epi32(1)), 1));
}

inline void AddMagnitudes(const uint8_t* symbols, __m512i* magnitude) {
  AddMagnitudes(_mm512_cvtepu8_epi32(
                    _mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols))),
                magnitude);
}

// Where the range of each latent's symbol lies in LatentTables::ranges, in the
// decoder's order; escapes on the way.
void FindRanges(const LatentTables& tables,
                absl::Span<const uint8_t> class_of_row, const int16_t* latents,
                uint16_t* places, std::vector<LatentEscape>* escapes) {
  int32_t magnitude_max[kLatentClasses];
  std::copy(tables.magnitude_max.begin(), tables.magnitude_max.end(),
            magnitude_max);
  ExpectedActivity expected;
  Activities tokens;
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t v = 0; v < kVectors; ++v) {
      const size_t at = row * kBlockTokens + v * kLanes;
      const __m512i q = _mm512_cvtepi16_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(latents + at)));
      const __m512i latent_class = Classes(class_of_row[row], tokens.shift[v]);
      const __m512i bound =
          _mm512_i32gather_epi32(latent_class, magnitude_max, sizeof(int32_t));
      const __mmask16 escaped =
          _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(q), bound);
      const __m512i zigzag =
          _mm512_xor_si512(_mm512_slli_epi32(q, 1), _mm512_srai_epi32(q, 31));
      const __m512i symbol = _mm512_mask_mov_epi32(
          zigzag, escaped, _mm512_set1_epi32(kEscapeSymbol));
      const __m512i place =
          _mm512_add_epi32(_mm512_slli_epi32(latent_class, 8), symbol);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + at),
                          _mm512_cvtepi32_epi16(place));
      AddMagnitudes(symbol, &tokens.magnitude[v]);
      for (uint32_t left = escaped; left != 0; left &= left - 1) {
        const size_t i = at + __builtin_ctz(left);
        escapes->push_back({static_cast<uint32_t>(i), latents[i]});
      }
    }
    if (row % kContextRows == kContextRows - 1) {
      expected.Look(tables, class_of_row, row + 1 - kContextRows);
      tokens.Look(expected);
    }
  }
}

}  // namespace

CodedLatents EncodeLatentsAvx512(const LatentTables& tables,
                                 absl::Span<const uint8_t> class_of_row,
                                 const int16_t* latents) {
  CodedLatents coded;
  const size_t count = class_of_row.size() * kBlockTokens;
  const auto places = std::make_unique_for_overwrite<uint16_t[]>(count);
  FindRanges(tables, class_of_row, latents, places.get(), &coded.escapes);
  // No symbol takes more than one word.
  const auto words = std::make_unique_for_overwrite<uint16_t[]>(count + kLanes);
  uint16_t* const end = words.get() + count + kLanes;
  uint16_t* begin = end;
  __m512i low = _mm512_set1_epi32(kEntropyStart), high = low;
  const auto range = [&](size_t at) {
    const __m256i sixteen =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places.get() + at));
    return _mm512_i32gather_epi32(_mm512_cvtepu16_epi32(sixteen),
                                  tables.ranges.data(), sizeof(uint32_t));
  };
  for (size_t at = count; at > 0; at -= kEntropyLanes) {
    const __m512i high_range = range(at - kLanes),
                  low_range = range(at - kEntropyLanes);
    begin = Put(high_range, Inverse(high_range), &high, begin);
    begin = Put(low_range, Inverse(low_range), &low, begin);
  }
  coded.bytes = Stream(low, high, begin, end);
  return coded;
}

bool DecodeLatentsAvx512(const LatentTables& tables,
                         absl::Span<const uint8_t> class_of_row, ByteSpan words,
                         uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  ExpectedActivity expected;
  Activities tokens;
  __m512i low = _mm512_loadu_si512(states),
          high = _mm512_loadu_si512(states + 16);
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t v = 0; v < kVectors; v += 2, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      const uint32_t* slots = tables.slots.data();
      const __mmask16 low_wants =
          Step(slots, TableOffsets(class_of_row[row], tokens.shift[v]), &low,
               symbols);
      const __mmask16 high_wants =
          Step(slots, TableOffsets(class_of_row[row], tokens.shift[v + 1]),
               &high, symbols + 16);
      const uint32_t low_count = _mm_popcnt_u32(low_wants);
      Refill(low_wants, cursor.next(), &low);
      Refill(high_wants, cursor.next() + 2 * low_count, &high);
      cursor.Advance(low_count + _mm_popcnt_u32(high_wants));
      AddMagnitudes(symbols, &tokens.magnitude[v]);
      AddMagnitudes(symbols + 16, &tokens.magnitude[v + 1]);
    }
    if (row % kContextRows == kContextRows - 1) {
      expected.Look(tables, class_of_row, row + 1 - kContextRows);
      tokens.Look(expected);
    }
  }
  _mm512_storeu_si512(states, low);
  _mm512_storeu_si512(states + 16, high);
  return cursor.AtEnd();
}

}  // namespace latentkv::kernels
