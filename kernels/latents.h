// Latents as integers, and as symbols of the entropy coder.
#ifndef LATENTKV_KERNELS_LATENTS_H_
#define LATENTKV_KERNELS_LATENTS_H_

#include <cstdint>

#include "absl/types/span.h"

namespace latentkv {

// A latent's symbol is its zigzag (0, -1, 1, -2, ...: 0, 1, 2, 3, ...), or
// kEscapeSymbol.
inline constexpr uint8_t kEscapeSymbol = 255;
// The largest that a symbol can hold: zigzag 254.
inline constexpr uint8_t kMagnitudeMax = 127;

// quantized[i] = latents[i] to nearest, ties to even, saturated to int16.
// Latents are finite.
void Quantize(absl::Span<const float> latents, absl::Span<int16_t> quantized);

// rows[r][t] = latents[t][r] for r below `rank`. `latents` is [tokens][stride].
void RowsFromLatents(absl::Span<const int16_t> latents, uint32_t tokens,
                     uint32_t stride, uint32_t rank, absl::Span<int16_t> rows);

// latents[t][r] of symbols[r][t], for r below `rank`; those of escapes become
// 0, and those at and behind `rank`.
void LatentsFromSymbols(absl::Span<const uint8_t> symbols, uint32_t tokens,
                        uint32_t stride, uint32_t rank,
                        absl::Span<int16_t> latents);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_LATENTS_H_
