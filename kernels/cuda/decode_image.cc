#include "kernels/cuda/decode_image.h"

#include <cstddef>

#include "kernels/cuda/crc32c.h"
#include "kernels/latents.h"

namespace latentkv::cuda {
namespace {

void FillChecksums(DecodeImage* image) {
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit)
      crc = crc >> 1 ^ (crc & 1 ? kCrcPolynomial : 0);
    image->checksums[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i) {
    for (int k = 1; k < 4; ++k) {
      const uint32_t before = image->checksums[k - 1][i];
      image->checksums[k][i] = before >> 8 ^ image->checksums[0][before & 255];
    }
  }
  image->powers[0] = 0x00800000;
  for (int i = 1; i < 32; ++i)
    image->powers[i] = CrcProduct(image->powers[i - 1], image->powers[i - 1]);
}

}  // namespace

absl::Status FillDecodeImage(const LatentTables& tables, DecodeImage* image) {
  *image = {};
  uint32_t place = 0;
  for (uint32_t i = 0; i < kWindowClasses; ++i) {
    const uint32_t c = kLowestWindowClass + i;
    for (uint32_t slot = 0; slot < kProbabilityOne; ++slot) {
      image->symbols[i][slot] =
          static_cast<uint8_t>(tables.slots[c * kProbabilityOne + slot]);
    }
    const uint32_t count = 2 * tables.magnitude_max[c] + 1;  // But the escape.
    const uint32_t zero = place + (count > 128 ? 128 : 1);
    place = zero + (count > 128 ? 128 : count);
    if (place > kWindowRanges)
      return absl::InvalidArgumentError(
          "more symbols of latents than a device has room for");
    image->first_ranges[i] =
        offsetof(DecodeImage, ranges) + zero * sizeof(uint32_t);
    for (uint32_t symbol = 0; symbol < 256; ++symbol) {
      if (symbol >= count && symbol != kEscapeSymbol) continue;
      const uint32_t range = tables.ranges[c * 256 + symbol];
      image->ranges[zero + static_cast<int8_t>(symbol)] =
          (range & 0xffff) | (kProbabilityOne - (range >> 16)) << 16;
    }
  }
  FillChecksums(image);
  return absl::OkStatus();
}

}  // namespace latentkv::cuda
