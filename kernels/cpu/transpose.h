// Transposition of arrays of 2-byte elements, by tiles of 8 by 8 in registers.
#ifndef LATENTKV_KERNELS_CPU_TRANSPOSE_H_
#define LATENTKV_KERNELS_CPU_TRANSPOSE_H_

#include <cstdint>

namespace latentkv::kernels {

// to[column][row] = from[row][column]. Strides are of rows of `from` and of
// `to`, in bytes; nothing need be aligned.
void Transpose16(const uint8_t* from, int64_t from_stride, uint8_t* to,
                 int64_t to_stride, uint32_t rows, uint32_t columns);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_TRANSPOSE_H_
