// One step of 8 lanes of rANS with AVX2. Include only where that is compiled
// for.
#ifndef LATENTKV_KERNELS_CPU_ENTROPY_AVX2_H_
#define LATENTKV_KERNELS_CPU_ENTROPY_AVX2_H_

#include <immintrin.h>

#include <array>
#include <cstdint>

#include "kernels/cpu/rans.h"

namespace latentkv::kernels {

// Unnamed: the linker must not merge what is compiled for one instruction set
// with anything else.
namespace {

constexpr uint32_t kVectors = kEntropyLanes / 8;

// For each mask of 8 lanes: which of the next words each wanting lane takes.
constexpr std::array<std::array<uint8_t, 8>, 256> MakeSpread() {
  std::array<std::array<uint8_t, 8>, 256> spread{};
  for (uint32_t mask = 0; mask < 256; ++mask) {
    uint8_t taken = 0;
    for (uint32_t lane = 0; lane < 8; ++lane)
      spread[mask][lane] = mask >> lane & 1 ? taken++ : 0;
  }
  return spread;
}
constexpr std::array<std::array<uint8_t, 8>, 256> kSpread = MakeSpread();

// Decodes one symbol in each of 8 lanes, whose tables begin at slots[offset].
inline __m256i Step(const uint32_t* slots, __m256i offset, __m256i* x) {
  const __m256i index = _mm256_or_si256(
      offset, _mm256_and_si256(*x, _mm256_set1_epi32(kProbabilityOne - 1)));
  const __m256i slot =
      _mm256_i32gather_epi32(reinterpret_cast<const int*>(slots), index, 4);
  const __m256i frequency = _mm256_add_epi32(
      _mm256_and_si256(_mm256_srli_epi32(slot, 8), _mm256_set1_epi32(0xfff)),
      _mm256_set1_epi32(1));
  *x = _mm256_add_epi32(
      _mm256_mullo_epi32(frequency, _mm256_srli_epi32(*x, kProbabilityBits)),
      _mm256_srli_epi32(slot, 20));
  return _mm256_and_si256(slot, _mm256_set1_epi32(0xff));
}

// Returns the number of words used.
inline uint32_t Refill(const uint8_t* words, __m256i* x) {
  const __m256i wants =
      _mm256_cmpeq_epi32(_mm256_srli_epi32(*x, 16), _mm256_setzero_si256());
  const uint32_t mask = _mm256_movemask_ps(_mm256_castsi256_ps(wants));
  const __m256i next = _mm256_cvtepu16_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
  const __m256i spread = _mm256_permutevar8x32_epi32(
      next, _mm256_cvtepu8_epi32(_mm_loadl_epi64(
                reinterpret_cast<const __m128i*>(kSpread[mask].data()))));
  *x = _mm256_blendv_epi8(
      *x, _mm256_or_si256(_mm256_slli_epi32(*x, 16), spread), wants);
  return _mm_popcnt_u32(mask);
}

inline void StoreSymbols(const __m256i* symbols, uint8_t* to) {
  const __m256i low = _mm256_packus_epi32(symbols[0], symbols[1]),
                high = _mm256_packus_epi32(symbols[2], symbols[3]);
  // The packs work in halves: put the groups of four back in order.
  const __m256i mixed = _mm256_packus_epi16(low, high);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_permutevar8x32_epi32(mixed, order));
}

}  // namespace

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ENTROPY_AVX2_H_
