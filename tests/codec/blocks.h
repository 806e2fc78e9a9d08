// What the tests of the codec share: random values, and frames restored into plain memory.
#ifndef LATENTKV_TESTS_CODEC_BLOCKS_H_
#define LATENTKV_TESTS_CODEC_BLOCKS_H_

#include <cstdint>
#include <random>

#include "absl/status/statusor.h"
#include "codec/codec.h"
#include "core/frame.h"
#include "core/limits.h"
#include "kernels/pages.h"
#include "kernels/rotary.h"

namespace latentkv {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t Bits() { return engine_(); }
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(engine_() % bound); }
  float Normal() { return normal_(engine_); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

inline Geometry Plain(uint32_t layers, uint32_t heads, uint32_t dims, DType dtype) {
  LayerGeometry layer;
  layer.kv_heads = heads;
  layer.head_dim = dims;
  layer.dtype = dtype;
  Geometry geometry;
  geometry.layers.assign(layers, layer);
  return geometry;
}

inline Bytes GaussianBlock(const Geometry& geometry, uint64_t seed) {
  Random random(seed);
  Bytes raw(RawBytes(geometry, kBlockTokens));
  const DType dtype = geometry.layers[0].dtype;
  for (size_t at = 0; at < raw.size(); at += DTypeBytes(dtype)) {
    const float value = random.Normal();
    FromFloat(dtype, &value, 1, raw.data() + at);
  }
  return raw;
}

inline Digest TestKey() { return Sha256({AsBytes("a block")}); }

// Into `raw`, which has the raw form's size.
inline absl::Status RestoreInto(const Codec& codec, ByteSpan frame, uint32_t first_token, Bytes* raw) {
  absl::StatusOr<FrameHeader> header = VerifyFrame(frame);
  if (!header.ok()) return header.status();
  absl::Status status = codec.Check(*header, TestKey(), first_token);
  PagedCache pages;
  pages.page_tokens = kBlockTokens;
  pages.page_count = 1;
  uint8_t* next = raw->data();
  for (const LayerGeometry& layer : codec.geometry().layers) {
    const int64_t dim = DTypeBytes(layer.dtype), head = dim * layer.head_dim, token = head * layer.kv_heads;
    const PageStrides strides{0, token, head, dim};
    pages.layers.push_back({next, next + token * kBlockTokens, strides, strides});
    next += 2 * token * kBlockTokens;
  }
  const TokenRun whole{0, 0, kBlockTokens};
  for (uint32_t s = 0; s < header->sections.size() && status.ok(); ++s) {
    const FrameSection& section = header->sections[s];
    status = codec.DecodeSection(*header, s, frame.subspan(section.offset, section.bytes), pages, {&whole, 1});
  }
  return status;
}

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CODEC_BLOCKS_H_
