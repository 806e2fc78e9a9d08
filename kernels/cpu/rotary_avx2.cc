#include <immintrin.h>

#include <cmath>

#include "kernels/cpu/rotary_backends.h"

namespace latentkv::kernels {
namespace {

void RotateHalves(float* head, const float* cosine, const float* sine,
                  uint32_t pairs, bool undo) {
  const __m256 sign = undo ? _mm256_set1_ps(-0.0f) : _mm256_setzero_ps();
  for (uint32_t i = 0; i + 8 <= pairs; i += 8) {
    const __m256 x = _mm256_loadu_ps(head + i),
                 y = _mm256_loadu_ps(head + pairs + i);
    const __m256 c = _mm256_loadu_ps(cosine + i),
                 s = _mm256_xor_ps(_mm256_loadu_ps(sine + i), sign);
    _mm256_storeu_ps(head + i, _mm256_fmsub_ps(x, c, _mm256_mul_ps(y, s)));
    _mm256_storeu_ps(head + pairs + i,
                     _mm256_fmadd_ps(y, c, _mm256_mul_ps(x, s)));
  }
}

void RotateNeighbours(float* head, const float* cosine, const float* sine,
                      uint32_t pairs, bool undo) {
  const __m256 sign = undo ? _mm256_set1_ps(-0.0f) : _mm256_setzero_ps();
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  for (uint32_t i = 0; i + 4 <= pairs; i += 4) {
    const __m256 xy = _mm256_loadu_ps(head + 2 * i),
                 yx = _mm256_permute_ps(xy, 0xb1);
    const __m256 c = _mm256_permutevar8x32_ps(
        _mm256_castps128_ps256(_mm_loadu_ps(cosine + i)), twice);
    const __m256 s = _mm256_permutevar8x32_ps(
        _mm256_castps128_ps256(_mm_loadu_ps(sine + i)), twice);
    _mm256_storeu_ps(
        head + 2 * i,
        _mm256_fmaddsub_ps(xy, c, _mm256_mul_ps(yx, _mm256_xor_ps(s, sign))));
  }
}

}  // namespace

void RotateHeadAvx2(float* head, const float* cosine, const float* sine,
                    uint32_t pairs, bool halves, bool undo) {
  const uint32_t whole = pairs / (halves ? 8 : 4) * (halves ? 8 : 4);
  const uint32_t apart = halves ? pairs : 1, step = halves ? 1 : 2;
  halves ? RotateHalves(head, cosine, sine, pairs, undo)
         : RotateNeighbours(head, cosine, sine, pairs, undo);
  for (uint32_t i = whole; i < pairs; ++i) {
    const float x = head[i * step], y = head[i * step + apart],
                s = undo ? -sine[i] : sine[i];
    head[i * step] = std::fma(x, cosine[i], -(y * s));
    head[i * step + apart] = std::fma(y, cosine[i], x * s);
  }
}

size_t Bf16FromFloatsAvx2(const float* from, size_t count, uint8_t* to) {
  size_t i = 0;
  const auto half = [](const float* eight) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(eight));
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)),
                         odd),
        16);
    const __m256i nan = _mm256_cmpgt_epi32(
        _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)),
        _mm256_set1_epi32(0x7f800000));
    return _mm256_blendv_epi8(
        rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  };
  for (; i + 16 <= count; i += 16) {
    const __m256i packed =
        _mm256_packus_epi32(half(from + i), half(from + i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i),
                        _mm256_permute4x64_epi64(packed, 0xd8));
  }
  return i;
}

size_t Fp16FromFloatsAvx2(const float* from, size_t count, uint8_t* to) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to + 2 * i),
        _mm256_cvtps_ph(_mm256_loadu_ps(from + i),
                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  return i;
}

size_t FloatsFromBf16Avx2(const uint8_t* from, size_t count, float* to) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i bits = _mm256_cvtepu16_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i)));
    _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
  return i;
}

size_t FloatsFromFp16Avx2(const uint8_t* from, size_t count, float* to) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(
                         reinterpret_cast<const __m128i*>(from + 2 * i))));
  }
  return i;
}

}  // namespace latentkv::kernels
