// What entropy decoding keeps in the shared memory of each multiprocessor: made
// once for a basis, and copied as it is.
#ifndef LATENTKV_KERNELS_CUDA_DECODE_IMAGE_H_
#define LATENTKV_KERNELS_CUDA_DECODE_IMAGE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"

namespace latentkv::cuda {

// Classes that are in shared memory, as many as fit. Live latents have at least
// class 16, and activity takes a class down by kClassShiftMax.
inline constexpr uint32_t kLowestWindowClass = 8, kWindowClasses = 46;
// Of those classes, a wide one has 256: more than the sum over the tables of
// codec/latent_model.h, 4960.
inline constexpr uint32_t kWindowRanges = 5120;

struct DecodeImage {
  uint8_t symbols[kWindowClasses][kProbabilityOne];
  uint32_t ranges[kWindowRanges];  // frequency | kProbabilityOne - start << 16
  // Byte of this image where a class has the range of symbol 0. Symbols count
  // from there as signed bytes: the escape is -1.
  uint32_t first_ranges[kWindowClasses + 2];
  uint32_t checksums[4][256];  // CRC-32C of a byte that so many others follow.
  // x^(8 * 2^i) modulo its polynomial, bits reflected.
  uint32_t powers[32];
};
static_assert(sizeof(DecodeImage) % 16 == 0);

// InvalidArgument for tables with more symbols than there is room for.
absl::Status FillDecodeImage(const LatentTables& tables, DecodeImage* image);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_DECODE_IMAGE_H_
