#include "kernels/planes.h"

#include <cstring>
#include <memory>

#include "kernels/cpu/planes_backends.h"
#include "kernels/cpu/transpose.h"

namespace latentkv {
namespace {

template <typename T>
void Split(const uint8_t* values, uint32_t tokens, uint32_t channels,
           uint8_t* top, uint8_t* rest) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const size_t plane_bytes = size_t{tokens} * channels;
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < channels; ++c) {
      T value;
      std::memcpy(&value, values + (size_t{t} * channels + c) * sizeof(T),
                  sizeof(T));
      value = static_cast<T>(value << 1 | value >> (kBits - 1));
      const size_t at = size_t{c} * tokens + t;
      top[at] = static_cast<uint8_t>(value >> (kBits - 8));
      for (uint32_t p = 1; p < sizeof(T); ++p) {
        rest[(p - 1) * plane_bytes + at] =
            static_cast<uint8_t>(value >> (kBits - 8 * (p + 1)));
      }
    }
  }
}

template <typename T>
void Merge(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
           uint32_t channels, uint8_t* values) {
  constexpr uint32_t kBits = 8 * sizeof(T);
  const size_t plane_bytes = size_t{tokens} * channels;
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t t = 0; t < tokens; ++t) {
      const size_t at = size_t{c} * tokens + t;
      T value = static_cast<T>(static_cast<T>(top[at]) << (kBits - 8));
      for (uint32_t p = 1; p < sizeof(T); ++p) {
        value |= static_cast<T>(static_cast<T>(rest[(p - 1) * plane_bytes + at])
                                << (kBits - 8 * (p + 1)));
      }
      value = static_cast<T>(value >> 1 | value << (kBits - 1));
      std::memcpy(values + (size_t{t} * channels + c) * sizeof(T), &value,
                  sizeof(T));
    }
  }
}

#if defined(__x86_64__)
// Whether they are whole tiles (cpu/planes_backends.h).
bool FitsAvx2(uint32_t tokens, uint32_t channels, Backend backend) {
  return backend != Backend::kPortable && tokens % kernels::kPlaneTokens == 0 &&
         channels % kernels::kPlaneChannels == 0;
}
#endif

// Two bytes are what engines use; transposed by tiles, so that the loops run
// over neighbours.
void Split16(const uint8_t* values, uint32_t tokens, uint32_t channels,
             uint8_t* top, uint8_t* rest) {
  const size_t count = size_t{tokens} * channels;
  const auto turned = std::make_unique_for_overwrite<uint16_t[]>(count);
  kernels::Transpose16(values, int64_t{2} * channels,
                       reinterpret_cast<uint8_t*>(turned.get()),
                       int64_t{2} * tokens, tokens, channels);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t value =
        static_cast<uint16_t>(turned[i] << 1 | turned[i] >> 15);
    top[i] = static_cast<uint8_t>(value >> 8);
    rest[i] = static_cast<uint8_t>(value);
  }
}

void Merge16(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
             uint32_t channels, uint8_t* values) {
  const size_t count = size_t{tokens} * channels;
  const auto turned = std::make_unique_for_overwrite<uint16_t[]>(count);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t value = static_cast<uint16_t>(top[i] << 8 | rest[i]);
    turned[i] = static_cast<uint16_t>(value >> 1 | value << 15);
  }
  kernels::Transpose16(reinterpret_cast<const uint8_t*>(turned.get()),
                       int64_t{2} * tokens, values, int64_t{2} * channels,
                       channels, tokens);
}

}  // namespace

void SplitPlanes(const uint8_t* values, uint32_t tokens, uint32_t channels,
                 uint32_t element_bytes, uint8_t* top, uint8_t* rest,
                 Backend backend) {
#if defined(__x86_64__)
  if (element_bytes == 2 && FitsAvx2(tokens, channels, backend)) {
    return kernels::SplitPlanes16Avx2(values, tokens, channels, top, rest);
  }
#endif
  (void)backend;
  switch (element_bytes) {
    case 1:
      return Split<uint8_t>(values, tokens, channels, top, rest);
    case 2:
      return Split16(values, tokens, channels, top, rest);
    default:
      return Split<uint32_t>(values, tokens, channels, top, rest);
  }
}

void MergePlanes(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
                 uint32_t channels, uint32_t element_bytes, uint8_t* values,
                 Backend backend) {
#if defined(__x86_64__)
  if (element_bytes == 2 && FitsAvx2(tokens, channels, backend)) {
    return kernels::MergePlanes16Avx2(top, rest, tokens, channels, values);
  }
#endif
  (void)backend;
  switch (element_bytes) {
    case 1:
      return Merge<uint8_t>(top, rest, tokens, channels, values);
    case 2:
      return Merge16(top, rest, tokens, channels, values);
    default:
      return Merge<uint32_t>(top, rest, tokens, channels, values);
  }
}

}  // namespace latentkv
