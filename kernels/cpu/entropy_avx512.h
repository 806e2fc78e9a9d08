// Steps of 16 lanes of rANS with AVX-512. Include only where that is compiled
// for.
#ifndef LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_
#define LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/rans.h"

namespace latentkv::kernels {

// Unnamed: the linker must not merge what is compiled for one instruction set
// with anything else.
namespace {

constexpr size_t kLanes = 16;

// Decodes one symbol in each of 16 lanes, whose tables begin at slots[offset];
// returns the mask of lanes that want a word.
inline __mmask16 Step(const uint32_t* slots, __m512i offset, __m512i* x,
                      uint8_t* symbols) {
  const __m512i index = _mm512_or_si512(
      offset, _mm512_and_si512(*x, _mm512_set1_epi32(kProbabilityOne - 1)));
  const __m512i slot = _mm512_i32gather_epi32(index, slots, 4);
  const __m512i frequency = _mm512_add_epi32(
      _mm512_and_si512(_mm512_srli_epi32(slot, 8), _mm512_set1_epi32(0xfff)),
      _mm512_set1_epi32(1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols),
                   _mm512_cvtepi32_epi8(slot));
  *x = _mm512_add_epi32(
      _mm512_mullo_epi32(frequency, _mm512_srli_epi32(*x, kProbabilityBits)),
      _mm512_srli_epi32(slot, 20));
  return _mm512_cmplt_epu32_mask(*x, _mm512_set1_epi32(kEntropyStart));
}

constexpr int kDown = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

// 1 / frequency of ranges, rounded down.
inline __m512 Inverse(__m512i range) {
  const __m512i frequency = _mm512_and_si512(range, _mm512_set1_epi32(0xffff));
  return _mm512_div_round_ps(_mm512_set1_ps(1), _mm512_cvtepi32_ps(frequency),
                             kDown);
}

// Encodes one symbol in each of 16 lanes, whose range is frequency | start <<
// 16, and returns where the words of those that were full begin, which end at
// `end`; 16 words before `end` are written over.
inline uint16_t* Put(__m512i range, __m512 inverse, __m512i* x, uint16_t* end) {
  const __m512i frequency = _mm512_and_si512(range, _mm512_set1_epi32(0xffff));
  const __mmask16 full = _mm512_cmpge_epu32_mask(
      _mm512_srli_epi32(*x, 32 - kProbabilityBits), frequency);
  const uint32_t count = _mm_popcnt_u32(full);
  const __m256i words =
      _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, *x));
  const __m256i upper = _mm256_add_epi16(
      _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
      _mm256_set1_epi16(static_cast<int16_t>(count)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(end - kLanes),
                      _mm256_permutexvar_epi16(upper, words));
  *x = _mm512_mask_srli_epi32(*x, full, *x, kWordBits);
  // The quotient is below 2^20, and three roundings down take less than 3 / 8
  // from it: it is right or one too small.
  const __m512 real =
      _mm512_mul_round_ps(_mm512_cvt_roundepu32_ps(*x, kDown), inverse, kDown);
  const __m512i quotient = _mm512_cvttps_epi32(real);
  const __m512i rest =
      _mm512_sub_epi32(*x, _mm512_mullo_epi32(quotient, frequency));
  *x = _mm512_add_epi32(
      _mm512_add_epi32(_mm512_slli_epi32(quotient, kProbabilityBits), rest),
      _mm512_srli_epi32(range, 16));
  const __mmask16 small = _mm512_cmpge_epu32_mask(rest, frequency);
  *x = _mm512_mask_add_epi32(
      *x, small, *x,
      _mm512_sub_epi32(_mm512_set1_epi32(kProbabilityOne), frequency));
  return end - count;
}

// What an encoder wrote: states, then words.
inline Bytes Stream(__m512i low, __m512i high, const uint16_t* begin,
                    const uint16_t* end) {
  Bytes coded(kStateBytes + (end - begin) * sizeof(uint16_t));
  _mm512_storeu_si512(coded.data(), low);
  _mm512_storeu_si512(coded.data() + sizeof(low), high);
  if (begin != end)
    std::memcpy(coded.data() + kStateBytes, begin, coded.size() - kStateBytes);
  return coded;
}

inline void Refill(__mmask16 wanting, const uint8_t* words, __m512i* x) {
  const __m512i next = _mm512_cvtepu16_epi32(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
  const __m512i spread = _mm512_maskz_expand_epi32(wanting, next);
  *x = _mm512_mask_or_epi32(*x, wanting, _mm512_slli_epi32(*x, kWordBits),
                            spread);
}

}  // namespace

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_
