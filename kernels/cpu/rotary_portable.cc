#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/rotary_backends.h"

namespace latentkv::kernels {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;

// Shifts `bits` right by `shift`, to nearest, ties to even.
uint32_t RoundShift(uint32_t bits, uint32_t shift) {
  return (bits + (1u << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift;
}

}  // namespace

void RotateHeadPortable(float* head, const float* cosine, const float* sine,
                        uint32_t pairs, bool halves, bool undo) {
  const uint32_t apart = halves ? pairs : 1, step = halves ? 1 : 2;
  for (uint32_t i = 0; i < pairs; ++i) {
    const float x = head[i * step], y = head[i * step + apart];
    const float ys = y * sine[i], xs = x * sine[i];
    head[i * step] = std::fma(x, cosine[i], undo ? ys : -ys);
    head[i * step + apart] = std::fma(y, cosine[i], undo ? -xs : xs);
  }
}

uint16_t Bf16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > kInfinity) return bits >> 16 | 0x40;
  return RoundShift(bits, 16);
}

uint16_t Fp16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value),
                 magnitude = bits & 0x7fffffff;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (magnitude > kInfinity) return sign | 0x7e00 | (magnitude >> 13 & 0x3ff);
  // 2^16
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  // 2^-14, the least normal
  if (magnitude >= 0x38800000)
    return sign | RoundShift(magnitude - 0x38000000, 13);
  return sign | static_cast<uint32_t>(
                    std::lrint(std::bit_cast<float>(magnitude) * 0x1p24f));
}

uint8_t Fp8FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value),
                 magnitude = bits & 0x7fffffff;
  const uint32_t sign = bits >> 24 & 0x80;
  if (magnitude > kInfinity) return sign | 0x7f;
  // 448, the greatest
  if (magnitude >= 0x43e00000) return sign | 0x7e;
  // 2^-6, the least normal
  if (magnitude >= 0x3c800000)
    return sign | RoundShift(magnitude - 0x3c000000, 20);
  return sign | static_cast<uint32_t>(
                    std::lrint(std::bit_cast<float>(magnitude) * 0x1p9f));
}

float FloatFromBf16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

float FloatFromFp16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1f,
                 fraction = bits & 0x3ff;
  if (exponent == 0x1f) {
    return std::bit_cast<float>(sign | kInfinity | fraction << 13 |
                                (fraction != 0 ? 0x400000u : 0u));
  }
  if (exponent == 0) {
    return std::bit_cast<float>(
        sign |
        std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f));
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

float FloatFromFp8(uint8_t bits) {
  const uint32_t sign = (bits & 0x80u) << 24, exponent = bits >> 3 & 0xf,
                 fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f)
    return std::bit_cast<float>(sign | kInfinity | 0x400000u);
  if (exponent == 0) {
    return std::bit_cast<float>(
        sign | std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-9f));
  }
  return std::bit_cast<float>(sign | (exponent + 120) << 23 | fraction << 20);
}

}  // namespace latentkv::kernels
