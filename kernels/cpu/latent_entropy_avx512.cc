#include <immintrin.h>

#include "kernels/cpu/entropy_avx512.h"
#include "kernels/cpu/entropy_backends.h"
#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"

namespace latentkv::kernels {
namespace {

constexpr uint32_t kVectors = kBlockTokens / 16;
static_assert(kVectors == 4 && kEntropyLanes == 32);

// Activities of 64 tokens, and the shifts that follow from them.
struct Activities {
  __m512i activity[kVectors], magnitude[kVectors], shift[kVectors];
  Activities() {
    for (uint32_t v = 0; v < kVectors; ++v) activity[v] = magnitude[v] = shift[v] = _mm512_setzero_si512();
  }
  void Look(const ExpectedActivity& expected) {
    const auto thresholds = expected.Thresholds();
    for (uint32_t v = 0; v < kVectors; ++v) {
      activity[v] = _mm512_add_epi32(
          _mm512_sub_epi32(activity[v], _mm512_srli_epi32(activity[v], ExpectedActivity::kDecayBits)),
          _mm512_slli_epi32(magnitude[v], kActivityBits));
      magnitude[v] = _mm512_setzero_si512();
      const __m512i compared = _mm512_add_epi32(activity[v], _mm512_set1_epi32(ExpectedActivity::kPrior));
      __m512i count = _mm512_set1_epi32(-static_cast<int>(kClassShiftMax));
      for (uint32_t threshold : thresholds) {
        const __mmask16 reached = _mm512_cmpge_epu32_mask(compared, _mm512_set1_epi32(threshold));
        count = _mm512_mask_add_epi32(count, reached, count, _mm512_set1_epi32(1));
      }
      shift[v] = count;
    }
  }
};

// Where the tables of 16 tokens' classes begin.
inline __m512i TableOffsets(uint8_t latent_class, __m512i shift) {
  const __m512i shifted = _mm512_add_epi32(_mm512_set1_epi32(latent_class), shift);
  const __m512i clamped =
      _mm512_min_epi32(_mm512_max_epi32(shifted, _mm512_setzero_si512()), _mm512_set1_epi32(kLatentClasses - 1));
  return _mm512_slli_epi32(clamped, kProbabilityBits);
}

inline void AddMagnitudes(const uint8_t* symbols, __m512i* magnitude) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols)));
  *magnitude = _mm512_add_epi32(*magnitude, _mm512_srli_epi32(_mm512_add_epi32(wide, _mm512_set1_epi32(1)), 1));
}

}  // namespace

bool DecodeLatentsAvx512(const LatentTables& tables, absl::Span<const uint8_t> class_of_row, ByteSpan words,
                         uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  ExpectedActivity expected;
  Activities tokens;
  __m512i low = _mm512_loadu_si512(states), high = _mm512_loadu_si512(states + 16);
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t v = 0; v < kVectors; v += 2, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      const uint32_t* slots = tables.slots.data();
      const __mmask16 low_wants = Step(slots, TableOffsets(class_of_row[row], tokens.shift[v]), &low, symbols);
      const __mmask16 high_wants =
          Step(slots, TableOffsets(class_of_row[row], tokens.shift[v + 1]), &high, symbols + 16);
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
