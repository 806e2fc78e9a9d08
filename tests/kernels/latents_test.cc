#include "kernels/latents.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <vector>

namespace latentkv {
namespace {

std::vector<int16_t> Quantized(const std::vector<float>& latents) {
  std::vector<int16_t> quantized(latents.size());
  Quantize(latents, absl::MakeSpan(quantized));
  return quantized;
}

TEST(Quantize, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(Quantized({0, -0.0f, 0.48f, 0.5f, 0.52f, 1.5f, 2.5f, -0.5f, -0.52f,
                       -1.5f, 1e-30f}),
            (std::vector<int16_t>{0, 0, 0, 0, 1, 2, 2, 0, -1, -2, 0}));
}

TEST(Quantize, Saturates) {
  EXPECT_EQ(Quantized({32767, 32767.4f, 32768, 1e30f, -32768, -32769, -1e30f}),
            (std::vector<int16_t>{32767, 32767, 32767, 32767, -32768, -32768,
                                  -32768}));
}

struct Shape {
  uint32_t tokens, stride, rank;
};
const Shape kShapes[] = {{64, 8, 8},   {64, 9, 8},     {64, 130, 0},
                         {64, 130, 1}, {64, 130, 127}, {7, 20, 13},
                         {1, 1, 1}};

TEST(RowsFromLatents, AreTheLeadingLatentsTokenByToken) {
  std::mt19937 random(1);
  for (const Shape& shape : kShapes) {
    std::vector<int16_t> latents(shape.tokens * shape.stride),
        rows(shape.rank * shape.tokens);
    for (int16_t& latent : latents) latent = static_cast<int16_t>(random());
    RowsFromLatents(latents, shape.tokens, shape.stride, shape.rank,
                    absl::MakeSpan(rows));
    for (uint32_t r = 0; r < shape.rank; ++r) {
      for (uint32_t t = 0; t < shape.tokens; ++t) {
        ASSERT_EQ(rows[r * shape.tokens + t], latents[t * shape.stride + r]);
      }
    }
  }
}

TEST(LatentsFromSymbols,
     UndoZigzagAndLeaveEscapesAndWhatIsBehindTheRankAtZero) {
  std::mt19937 random(2);
  for (const Shape& shape : kShapes) {
    std::vector<uint8_t> symbols(shape.rank * shape.tokens);
    for (uint8_t& symbol : symbols)
      symbol = random() % 4 == 0 ? kEscapeSymbol : random();
    std::vector<int16_t> latents(shape.tokens * shape.stride, 0x5a5a);
    LatentsFromSymbols(symbols, shape.tokens, shape.stride, shape.rank,
                       absl::MakeSpan(latents));
    for (uint32_t t = 0; t < shape.tokens; ++t) {
      for (uint32_t r = 0; r < shape.stride; ++r) {
        const int16_t latent = latents[t * shape.stride + r];
        const int symbol = r < shape.rank ? symbols[r * shape.tokens + t] : 0;
        const int expected = symbol == kEscapeSymbol ? 0
                             : symbol % 2            ? -(symbol + 1) / 2
                                                     : symbol / 2;
        ASSERT_EQ(latent, expected) << "symbol " << symbol;
      }
    }
  }
}

TEST(LatentsFromSymbols, SymbolsHoldEveryMagnitudeUpToTheLargest) {
  std::vector<uint8_t> symbols;
  for (int symbol = 0; symbol < kEscapeSymbol; ++symbol)
    symbols.push_back(symbol);
  std::vector<int16_t> latents(symbols.size());
  LatentsFromSymbols(symbols, symbols.size(), 1, 1, absl::MakeSpan(latents));
  std::vector<bool> seen(2 * kMagnitudeMax + 1);
  for (int16_t latent : latents) seen[latent + kMagnitudeMax] = true;
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 2 * kMagnitudeMax + 1);
}

}  // namespace
}  // namespace latentkv
