#include <immintrin.h>

#include "kernels/cpu/entropy_avx2.h"
#include "kernels/cpu/entropy_backends.h"
#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"

namespace latentkv::kernels {
namespace {

constexpr uint32_t kTokenVectors = kBlockTokens / 8;

struct Activities {
  __m256i activity[kTokenVectors], magnitude[kTokenVectors],
      shift[kTokenVectors];
  Activities() {
    for (uint32_t v = 0; v < kTokenVectors; ++v)
      activity[v] = magnitude[v] = shift[v] = _mm256_setzero_si256();
  }
  void Look(const ExpectedActivity& expected) {
    const auto thresholds = expected.Thresholds();
    for (uint32_t v = 0; v < kTokenVectors; ++v) {
      activity[v] = _mm256_add_epi32(
          _mm256_sub_epi32(
              activity[v],
              _mm256_srli_epi32(activity[v], ExpectedActivity::kDecayBits)),
          _mm256_slli_epi32(magnitude[v], kActivityBits));
      magnitude[v] = _mm256_setzero_si256();
      const __m256i compared = _mm256_add_epi32(
          activity[v], _mm256_set1_epi32(ExpectedActivity::kPrior));
      __m256i count = _mm256_set1_epi32(-static_cast<int>(kClassShiftMax));
      for (uint32_t threshold : thresholds) {
        // Unsigned compared >= threshold; a mask is -1.
        const __m256i bound = _mm256_set1_epi32(threshold);
        const __m256i reached =
            _mm256_cmpeq_epi32(_mm256_max_epu32(compared, bound), compared);
        count = _mm256_sub_epi32(count, reached);
      }
      shift[v] = count;
    }
  }
};

inline __m256i TableOffsets(uint8_t latent_class, __m256i shift) {
  const __m256i shifted =
      _mm256_add_epi32(_mm256_set1_epi32(latent_class), shift);
  const __m256i clamped =
      _mm256_min_epi32(_mm256_max_epi32(shifted, _mm256_setzero_si256()),
                       _mm256_set1_epi32(kLatentClasses - 1));
  return _mm256_slli_epi32(clamped, kProbabilityBits);
}

}  // namespace

bool DecodeLatentsAvx2(const LatentTables& tables,
                       absl::Span<const uint8_t> class_of_row, ByteSpan words,
                       uint32_t* states, uint8_t* symbols) {
  WordCursor cursor(words);
  ExpectedActivity expected;
  Activities tokens;
  __m256i x[kVectors], out[kVectors];
  for (uint32_t v = 0; v < kVectors; ++v)
    x[v] = _mm256_loadu_si256(reinterpret_cast<__m256i*>(states + 8 * v));
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t half = 0; half < kTokenVectors;
         half += kVectors, symbols += kEntropyLanes) {
      if (!cursor.Prepare()) return false;
      for (uint32_t v = 0; v < kVectors; ++v) {
        out[v] = Step(tables.slots.data(),
                      TableOffsets(class_of_row[row], tokens.shift[half + v]),
                      &x[v]);
        const __m256i magnitude = _mm256_srli_epi32(
            _mm256_add_epi32(out[v], _mm256_set1_epi32(1)), 1);
        tokens.magnitude[half + v] =
            _mm256_add_epi32(tokens.magnitude[half + v], magnitude);
      }
      for (uint32_t v = 0; v < kVectors; ++v)
        cursor.Advance(Refill(cursor.next(), &x[v]));
      StoreSymbols(out, symbols);
    }
    if (row % kContextRows == kContextRows - 1) {
      expected.Look(tables, class_of_row, row + 1 - kContextRows);
      tokens.Look(expected);
    }
  }
  for (uint32_t v = 0; v < kVectors; ++v)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8 * v), x[v]);
  return cursor.AtEnd();
}

}  // namespace latentkv::kernels
