#include "kernels/latents.h"

#include <algorithm>
#include <memory>

#include "kernels/cpu/round.h"
#include "kernels/cpu/transpose.h"

namespace latentkv {

void Quantize(absl::Span<const float> latents, absl::Span<int16_t> quantized) {
  for (size_t i = 0; i < latents.size(); ++i) {
    const float bounded = std::min(32767.0f, std::max(-32768.0f, latents[i]));
    quantized[i] = static_cast<int16_t>(kernels::RoundSmall(bounded));
  }
}

void RowsFromLatents(absl::Span<const int16_t> latents, uint32_t tokens,
                     uint32_t stride, uint32_t rank, absl::Span<int16_t> rows) {
  kernels::Transpose16(reinterpret_cast<const uint8_t*>(latents.data()),
                       int64_t{2} * stride,
                       reinterpret_cast<uint8_t*>(rows.data()),
                       int64_t{2} * tokens, tokens, rank);
}

void LatentsFromSymbols(absl::Span<const uint8_t> symbols, uint32_t tokens,
                        uint32_t stride, uint32_t rank,
                        absl::Span<int16_t> latents) {
  const size_t count = size_t{rank} * tokens;
  const auto rows = std::make_unique_for_overwrite<int16_t[]>(count);
  for (size_t i = 0; i < count; ++i) {
    const int16_t symbol = symbols[i];
    const int16_t q = static_cast<int16_t>(symbol >> 1 ^ -(symbol & 1));
    rows[i] = symbol == kEscapeSymbol ? int16_t{0} : q;
  }
  for (uint32_t t = 0; t < tokens; ++t)
    std::fill_n(latents.data() + size_t{t} * stride + rank, stride - rank, 0);
  kernels::Transpose16(reinterpret_cast<const uint8_t*>(rows.get()),
                       int64_t{2} * tokens,
                       reinterpret_cast<uint8_t*>(latents.data()),
                       int64_t{2} * stride, rank, tokens);
}

}  // namespace latentkv
