#include "kernels/cpu/transpose.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace latentkv::kernels {
namespace {

constexpr uint32_t kTile = 8;

void TransposePart(const uint8_t* from, int64_t from_stride, uint8_t* to,
                   int64_t to_stride, uint32_t rows, uint32_t columns) {
  for (uint32_t r = 0; r < rows; ++r) {
    for (uint32_t c = 0; c < columns; ++c)
      std::memcpy(to + c * to_stride + 2 * r, from + r * from_stride + 2 * c,
                  2);
  }
}

#if defined(__SSE2__)
inline void TransposeTile(const uint8_t* from, int64_t from_stride, uint8_t* to,
                          int64_t to_stride) {
  __m128i a[8], b[8];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm_loadu_si128(
        reinterpret_cast<const __m128i*>(from + i * from_stride));
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {  // b[4i..]: rows 4i to 4i+3
    a[4 * i] = _mm_unpacklo_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm_unpackhi_epi32(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm_unpacklo_epi32(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm_unpackhi_epi32(b[4 * i + 1], b[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi64(a[i], a[i + 4]);
    b[2 * i + 1] = _mm_unpackhi_epi64(a[i], a[i + 4]);
  }
  for (int i = 0; i < 8; ++i)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), b[i]);
}
#else
inline void TransposeTile(const uint8_t* from, int64_t from_stride, uint8_t* to,
                          int64_t to_stride) {
  TransposePart(from, from_stride, to, to_stride, kTile, kTile);
}
#endif

}  // namespace

void Transpose16(const uint8_t* from, int64_t from_stride, uint8_t* to,
                 int64_t to_stride, uint32_t rows, uint32_t columns) {
  if (rows == 0 || columns == 0) return;  // Pointers may be null then.
  const uint32_t whole_rows = rows / kTile * kTile,
                 whole_columns = columns / kTile * kTile;
  // Columns outside: the rows of `to` are the far ones in an engine's pages,
  // and are each finished before the next.
  for (uint32_t c = 0; c < whole_columns; c += kTile) {
    for (uint32_t r = 0; r < whole_rows; r += kTile) {
      TransposeTile(from + r * from_stride + 2 * c, from_stride,
                    to + c * to_stride + 2 * r, to_stride);
    }
  }
  TransposePart(from + 2 * whole_columns, from_stride,
                to + whole_columns * to_stride, to_stride, whole_rows,
                columns - whole_columns);
  TransposePart(from + whole_rows * from_stride, from_stride,
                to + 2 * whole_rows, to_stride, rows - whole_rows, columns);
}

}  // namespace latentkv::kernels
