// Rotary position embedding of keys, done and undone, and float to and from the
// engine's types.
#ifndef LATENTKV_KERNELS_ROTARY_H_
#define LATENTKV_KERNELS_ROTARY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/geometry.h"
#include "kernels/backend.h"

namespace latentkv {

// Cosine and sine of tokens at positions [first, first + tokens): computed in
// double, rounded once to float.
struct RotaryTable {
  uint32_t tokens = 0;
  uint32_t pairs = 0;  // rotary_dim / 2
  // [tokens][pairs], times rotary_scale: for Rotate
  std::vector<float> cosine, sine;
  // [tokens][pairs], over rotary_scale: for Unrotate
  std::vector<float> undo_cosine, undo_sine;
};

// Depends on rotary_dim, rotary_scale and inverse_frequencies alone: layers
// that agree in them can share a table.
RotaryTable MakeRotaryTable(const LayerGeometry& layer, uint32_t first,
                            uint32_t tokens);

// Rotates in place the keys of table.tokens tokens: element (t, head, dim) is
// keys[t * stride + head * head_dim + dim]. For a pair (x, y): x' = fma(x, cos,
// -(y * sin)), y' = fma(y, cos, x * sin). Does nothing with kNone.
void Rotate(const LayerGeometry& layer, const RotaryTable& table, float* keys,
            size_t stride, Backend backend = BestBackend());

// The inverse, up to rounding: x = fma(x', cos, y' * sin), y = fma(y', cos,
// -(x' * sin)).
void Unrotate(const LayerGeometry& layer, const RotaryTable& table, float* keys,
              size_t stride, Backend backend = BestBackend());

// `count` floats to values of `dtype`, to nearest, ties to even; a NaN stays a
// NaN. fp8 saturates at 448. Nothing need be aligned.
void FromFloat(DType dtype, const float* from, size_t count, uint8_t* to,
               Backend backend = BestBackend());

// Exact.
void ToFloat(DType dtype, const uint8_t* from, size_t count, float* to,
             Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_ROTARY_H_
