#include <immintrin.h>

#include <cstddef>

#include "kernels/cpu/planes_backends.h"

namespace latentkv::kernels {
namespace {

// Transposes 8 rows of 8 elements of two bytes in each half.
__attribute__((always_inline)) inline void Transpose(__m256i* a) {
  __m256i b[8];
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {  // b[4i..]: rows 4i to 4i+3
    a[4 * i] = _mm256_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm256_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm256_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm256_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm256_unpacklo_epi64(a[i], a[i + 4]);
    b[2 * i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 4]);
  }
  for (int i = 0; i < 8; ++i) a[i] = b[i];
}

// A tile is 32 tokens of 8 channels. Tokens 0 to 7 and 16 to 23 lie in the
// halves of `early`, the others in `late`: so that packing, which works in
// halves, leaves them in order.
constexpr uint32_t kHalf = kPlaneTokens / 2;

}  // namespace

void SplitPlanes16Avx2(const uint8_t* values, uint32_t tokens,
                       uint32_t channels, uint8_t* top, uint8_t* rest) {
  const size_t token_bytes = size_t{2} * channels;
  const auto load = [&](const uint8_t* from) {
    const __m256i pair = _mm256_loadu2_m128i(
        reinterpret_cast<const __m128i*>(from + kHalf * token_bytes),
        reinterpret_cast<const __m128i*>(from));
    return _mm256_or_si256(_mm256_add_epi16(pair, pair),
                           _mm256_srli_epi16(pair, 15));
  };
  const __m256i low_byte = _mm256_set1_epi16(0xff);
  for (uint32_t c = 0; c < channels; c += kPlaneChannels) {
    for (uint32_t t = 0; t < tokens; t += kPlaneTokens) {
      const uint8_t* from = values + t * token_bytes + 2 * c;
      __m256i early[8], late[8];
      for (int i = 0; i < 8; ++i) early[i] = load(from + i * token_bytes);
      for (int i = 0; i < 8; ++i) late[i] = load(from + (8 + i) * token_bytes);
      Transpose(early);
      Transpose(late);
      for (uint32_t i = 0; i < kPlaneChannels; ++i) {
        const size_t to = size_t{c + i} * tokens + t;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(top + to),
                            _mm256_packus_epi16(_mm256_srli_epi16(early[i], 8),
                                                _mm256_srli_epi16(late[i], 8)));
        early[i] = _mm256_and_si256(early[i], low_byte);
        late[i] = _mm256_and_si256(late[i], low_byte);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest + to),
                            _mm256_packus_epi16(early[i], late[i]));
      }
    }
  }
}

void MergePlanes16Avx2(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
                       uint32_t channels, uint8_t* values) {
  const size_t token_bytes = size_t{2} * channels;
  const auto turn = [](__m256i v) {
    return _mm256_or_si256(_mm256_srli_epi16(v, 1), _mm256_slli_epi16(v, 15));
  };
  for (uint32_t c = 0; c < channels; c += kPlaneChannels) {
    for (uint32_t t = 0; t < tokens; t += kPlaneTokens) {
      __m256i early[8], late[8];
      for (uint32_t i = 0; i < kPlaneChannels; ++i) {
        const size_t at = size_t{c + i} * tokens + t;
        const __m256i high =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(top + at));
        const __m256i low =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rest + at));
        early[i] = turn(_mm256_unpacklo_epi8(low, high));
        late[i] = turn(_mm256_unpackhi_epi8(low, high));
      }
      Transpose(early);
      Transpose(late);
      uint8_t* to = values + t * token_bytes + 2 * c;
      const auto store = [&](uint8_t* at, __m256i pair) {
        uint8_t* const later = at + kHalf * token_bytes;
        _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(later),
                             reinterpret_cast<__m128i*>(at), pair);
      };
      for (int i = 0; i < 8; ++i) store(to + i * token_bytes, early[i]);
      for (int i = 0; i < 8; ++i) store(to + (8 + i) * token_bytes, late[i]);
    }
  }
}

}  // namespace latentkv::kernels
