#include "kernels/rotary.h"

#include <cmath>
#include <cstring>

#include "kernels/cpu/rotary_backends.h"

namespace latentkv {
namespace {

void Turn(const LayerGeometry& layer, const RotaryTable& table,
          const std::vector<float>& cosine, const std::vector<float>& sine,
          bool undo, float* keys, size_t stride, Backend backend) {
  if (layer.pairing == RotaryPairing::kNone) return;
  auto* turn_head = &kernels::RotateHeadPortable;
#if defined(__x86_64__)
  if (backend != Backend::kPortable) turn_head = &kernels::RotateHeadAvx2;
#endif
  (void)backend;
  const bool halves = layer.pairing == RotaryPairing::kHalves;
  for (uint32_t t = 0; t < table.tokens; ++t) {
    const size_t at = size_t{t} * table.pairs;
    for (uint32_t h = 0; h < layer.kv_heads; ++h) {
      turn_head(keys + t * stride + size_t{h} * layer.head_dim,
                cosine.data() + at, sine.data() + at, table.pairs, halves,
                undo);
    }
  }
}

template <typename T, typename Convert>
void FromEach(const float* from, size_t first, size_t count, uint8_t* to,
              Convert convert) {
  for (size_t i = first; i < count; ++i) {
    const T value = convert(from[i]);
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

template <typename T, typename Convert>
void ToEach(const uint8_t* from, size_t first, size_t count, float* to,
            Convert convert) {
  for (size_t i = first; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = convert(value);
  }
}

}  // namespace

RotaryTable MakeRotaryTable(const LayerGeometry& layer, uint32_t first,
                            uint32_t tokens) {
  RotaryTable table;
  table.tokens = tokens;
  table.pairs =
      layer.pairing == RotaryPairing::kNone ? 0 : layer.rotary_dim / 2;
  const size_t entries = size_t{tokens} * table.pairs;
  for (auto* values :
       {&table.cosine, &table.sine, &table.undo_cosine, &table.undo_sine})
    values->resize(entries);
  const double scale = layer.rotary_scale;
  for (size_t i = 0; i < entries; ++i) {
    const double position =
        static_cast<double>(first) + static_cast<double>(i / table.pairs);
    const double angle = layer.inverse_frequencies[i % table.pairs] * position;
    const double cosine = std::cos(angle), sine = std::sin(angle);
    table.cosine[i] = static_cast<float>(cosine * scale);
    table.sine[i] = static_cast<float>(sine * scale);
    table.undo_cosine[i] = static_cast<float>(cosine / scale);
    table.undo_sine[i] = static_cast<float>(sine / scale);
  }
  return table;
}

void Rotate(const LayerGeometry& layer, const RotaryTable& table, float* keys,
            size_t stride, Backend backend) {
  Turn(layer, table, table.cosine, table.sine, /*undo=*/false, keys, stride,
       backend);
}

void Unrotate(const LayerGeometry& layer, const RotaryTable& table, float* keys,
              size_t stride, Backend backend) {
  Turn(layer, table, table.undo_cosine, table.undo_sine, /*undo=*/true, keys,
       stride, backend);
}

void FromFloat(DType dtype, const float* from, size_t count, uint8_t* to,
               Backend backend) {
  size_t done = 0;
#if defined(__x86_64__)
  if (backend != Backend::kPortable && dtype == DType::kBf16)
    done = kernels::Bf16FromFloatsAvx2(from, count, to);
  if (backend != Backend::kPortable && dtype == DType::kFp16)
    done = kernels::Fp16FromFloatsAvx2(from, count, to);
#endif
  (void)backend;
  switch (dtype) {
    case DType::kBf16:
      return FromEach<uint16_t>(from, done, count, to, kernels::Bf16FromFloat);
    case DType::kFp16:
      return FromEach<uint16_t>(from, done, count, to, kernels::Fp16FromFloat);
    case DType::kFp32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case DType::kFp8E4M3:
      return FromEach<uint8_t>(from, done, count, to, kernels::Fp8FromFloat);
  }
}

void ToFloat(DType dtype, const uint8_t* from, size_t count, float* to,
             Backend backend) {
  size_t done = 0;
#if defined(__x86_64__)
  if (backend != Backend::kPortable && dtype == DType::kBf16)
    done = kernels::FloatsFromBf16Avx2(from, count, to);
  if (backend != Backend::kPortable && dtype == DType::kFp16)
    done = kernels::FloatsFromFp16Avx2(from, count, to);
#endif
  (void)backend;
  switch (dtype) {
    case DType::kBf16:
      return ToEach<uint16_t>(from, done, count, to, kernels::FloatFromBf16);
    case DType::kFp16:
      return ToEach<uint16_t>(from, done, count, to, kernels::FloatFromFp16);
    case DType::kFp32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case DType::kFp8E4M3:
      return ToEach<uint8_t>(from, done, count, to, kernels::FloatFromFp8);
  }
}

}  // namespace latentkv
