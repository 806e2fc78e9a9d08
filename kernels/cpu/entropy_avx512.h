// One step of 16 lanes of rANS with AVX-512. Include only where that is compiled for.
#ifndef LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_
#define LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/rans.h"

namespace latentkv::kernels {

// Unnamed: the linker must not merge what is compiled for one instruction set with anything else.
namespace {

// Decodes one symbol in each of 16 lanes, whose tables begin at slots[offset]; returns the mask of lanes that want a
// word.
inline __mmask16 Step(const uint32_t* slots, __m512i offset, __m512i* x, uint8_t* symbols) {
  const __m512i index = _mm512_or_si512(offset, _mm512_and_si512(*x, _mm512_set1_epi32(kProbabilityOne - 1)));
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
  *x = _mm512_mask_or_epi32(*x, wanting, _mm512_slli_epi32(*x, kWordBits), spread);
}

}  // namespace

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ENTROPY_AVX512_H_
