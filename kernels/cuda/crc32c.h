// CRC-32C in pieces, for hosts and devices.
#ifndef LATENTKV_KERNELS_CUDA_CRC32C_H_
#define LATENTKV_KERNELS_CUDA_CRC32C_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace latentkv::cuda {

inline constexpr uint32_t kCrcPolynomial = 0x82f63b78;  // Bits reflected.

// The product of two polynomials modulo CRC-32C's.
__host__ __device__ inline uint32_t CrcProduct(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if (a >> bit & 1) product ^= b;
    b = b >> 1 ^ (b & 1 ? kCrcPolynomial : 0);
  }
  return product;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_CRC32C_H_
