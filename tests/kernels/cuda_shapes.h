// Models, layouts and blocks that the device's restore and encoder are tested
// with.
#ifndef LATENTKV_TESTS_KERNELS_CUDA_SHAPES_H_
#define LATENTKV_TESTS_KERNELS_CUDA_SHAPES_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <ostream>
#include <vector>

#include "codec/basis.h"
#include "codec/latent_section.h"
#include "codec/sinks.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/pages.h"
#include "tests/codec/synthetic.h"

namespace latentkv::cuda {

inline constexpr uint8_t kPoison = 0xa5;

struct Shape {
  const char* name;
  DType dtype = DType::kBf16;
  uint32_t kv_heads = 2, head_dim = 64, rotary_dim = 64, value_dim = 0;
  RotaryPairing pairing = RotaryPairing::kHalves;
  uint32_t layers = 4, layers_per_group = 2;
  uint32_t rank = 200, inherited_rank = 128, dims = 40, history = 2;
  uint32_t blocks = 7, first_block = 0;
  uint32_t page_tokens = 16;
  // kLatents: one tensor, [page, token, V, then K].
  enum Layout { kNhd, kHnd, kKeysTransposed, kLatents } layout = kNhd;
  // Of the leading latents: how many are large.
  float scale = 20;
  // One block in so many has a byte changed, its checksum made right again.
  uint32_t damage = 0;
  bool wrong_checksum = false;      // Its checksum is changed, and no byte.
  uint32_t tp_rank = 0, ranks = 1;  // Whose heads the pages hold.
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.name;
}

inline Geometry GeometryOf(const Shape& shape) {
  LayerGeometry layer;
  layer.kv_heads = shape.kv_heads;
  layer.head_dim = shape.head_dim;
  layer.value_dim = shape.value_dim;
  layer.rotary_dim = shape.rotary_dim;
  layer.pairing = shape.pairing;
  layer.rotary_scale = 1.25f;
  layer.dtype = shape.dtype;
  for (uint32_t i = 0; i < shape.rotary_dim / 2; ++i) {
    layer.inverse_frequencies.push_back(
        std::pow(1e4, -2.0 * i / shape.rotary_dim));
  }
  Geometry geometry;
  geometry.layers.assign(shape.layers, layer);
  // Layers that rotate otherwise.
  for (double& frequency : geometry.layers.back().inverse_frequencies)
    frequency *= 0.5;
  return geometry;
}

template <typename T, typename Draw>
std::vector<T> Drawn(size_t count, Draw draw) {
  std::vector<T> values(count);
  for (T& value : values) value = draw();
  return values;
}

inline std::shared_ptr<const Basis> BasisOf(const Shape& shape,
                                            Random* random) {
  BasisParts parts;
  parts.geometry = GeometryOf(shape);
  parts.description = "random";
  parts.profiles = {{"balanced", 1.0f, 1.0f}};
  const uint32_t features = shape.dims * shape.history;
  parts.embedding = {features > 0 ? 300u : 0u, shape.dims, shape.history, {}};
  parts.embedding.rows =
      Drawn<int8_t>(size_t{parts.embedding.vocabulary} * shape.dims,
                    [&] { return random->Signed(20); });
  parts.inherited_rank = shape.inherited_rank;
  for (uint32_t first = 0, g = 0; first < shape.layers;
       first += shape.layers_per_group, ++g) {
    BasisGroup group;
    group.first_layer = first;
    group.last_layer = std::min(shape.layers, first + shape.layers_per_group);
    group.channels =
        (group.last_layer - first) * parts.geometry.layers[0].Channels();
    group.rank = std::min(group.channels, shape.rank + 37 * g);
    const auto floats = [&](float low, float high) {
      return Drawn<float>(group.channels,
                          [&] { return random->Between(low, high); });
    };
    group.mean = floats(-1, 1);
    if (features > 0) group.feature_scale = floats(0x1p-14f, 0x1p-12f);
    group.row_scale = floats(0x1p-11f, 0x1p-9f);
    group.weight = floats(0.5f, 2);
    group.sensitivity = floats(0x1p-11f, 0x1p-9f);
    float scale = shape.scale;
    for (uint32_t r = 0; r < group.rank; ++r, scale *= 0.985f)
      group.latent_scale.push_back(scale);
    const size_t rows = group.rank + g * shape.inherited_rank;
    group.decoder = Drawn<int8_t>(rows * group.channels,
                                  [&] { return random->Signed(127); });
    group.feature_rows = Drawn<int8_t>(size_t{features} * group.channels,
                                       [&] { return random->Signed(127); });
    parts.groups.push_back(std::move(group));
  }
  KnownSinks sinks = {{7, 8, 9, 10}, {}};
  const std::vector<float> values = Drawn<float>(
      size_t{shape.layers} * kSinkTokens * parts.geometry.layers[0].Channels(),
      [&] { return random->Normal(); });
  sinks.values = WriteSinks(parts.geometry, values.data());
  parts.sinks.push_back(std::move(sinks));
  return Basis::Create(std::move(parts)).value();
}

// What a writer might have written, with everything that sections can have.
inline LatentSection SectionOf(const Basis& basis, uint32_t index, float step,
                               bool first_of_chain, Random* random) {
  const BasisGroup& group = basis.groups()[index];
  LatentSection section;
  section.predicted = random->Below(4) != 0;
  size_t token_bytes = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    const LayerGeometry& layer = basis.geometry().layers[l];
    token_bytes += layer.Channels() * DTypeBytes(layer.dtype);
  }
  if (first_of_chain) {
    section.sink_source =
        random->Below(2) == 0 ? SinkSource::kBasis : SinkSource::kStored;
    if (section.sink_source == SinkSource::kStored) {
      // Of floats that are finite: the known ones of another group will do.
      section.sinks.resize(
          SinkBytes(basis.geometry(), group.first_layer, group.last_layer));
      for (uint8_t& byte : section.sinks) byte = random->Below(100);
    }
  }
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    if (random->Below(20) == 0) section.exact_tokens.push_back(t);
  }
  section.exact_values =
      Drawn<uint8_t>(section.exact_tokens.size() * token_bytes,
                     [&] { return random->Below(120); });
  section.latents.assign(size_t{kBlockTokens} * group.rank, 0);
  const uint32_t rank = random->Below(6) == 0
                            ? random->Below(3)
                            : group.rank - random->Below(group.rank / 2 + 1);
  const float active = random->Between(0.3f, 1.5f);
  for (uint32_t t = first_of_chain ? kSinkTokens : 0; t < kBlockTokens; ++t) {
    if (std::binary_search(section.exact_tokens.begin(),
                           section.exact_tokens.end(), t))
      continue;
    for (uint32_t r = 0; r < rank; ++r) {
      const float q = random->Laplace() * active * group.latent_scale[r] / step;
      section.latents[size_t{t} * group.rank + r] =
          std::clamp(static_cast<int>(std::lrint(q)), -256, 256);
    }
  }
  return section;
}

// The engine's memory of K and of V of every layer, on the host and on the
// device.
class Pages {
 public:
  Pages(const Shape& shape, uint64_t pages)
      : shape_(shape), pages_(pages), element_(DTypeBytes(shape.dtype)) {
    // Room for the larger of K and V.
    part_bytes_ = pages * shape.page_tokens * shape.kv_heads *
                  std::max(shape.head_dim, shape.value_dim) * element_;
    host_.assign(2 * shape.layers * part_bytes_, kPoison);
    device_ = DeviceArray<uint8_t>::Copy(host_).value();
  }
  PagedCache cache() {
    PagedCache cache{{}, shape_.page_tokens, pages_};
    for (uint32_t l = 0; l < shape_.layers; ++l) {
      cache.layers.push_back({host_.data() + Base(2 * l),
                              host_.data() + Base(2 * l + 1), Strides(true),
                              Strides(false)});
    }
    return cache;
  }
  std::vector<DevicePart> parts() const {
    std::vector<DevicePart> parts;
    for (uint32_t p = 0; p < 2 * shape_.layers; ++p) {
      const PageStrides strides = Strides(p % 2 == 0);
      parts.push_back({device_.data() + Base(p), strides.page, strides.token,
                       strides.head, strides.dim});
    }
    return parts;
  }
  // What the host has goes to the device.
  void Upload() {
    EXPECT_EQ(cudaMemcpy(device_.data(), host_.data(), host_.size(),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  const Bytes& host() const { return host_; }
  bool PoisonDevice() const {
    return cudaMemset(device_.data(), kPoison, host_.size()) == cudaSuccess;
  }
  Bytes device() const {
    Bytes bytes(host_.size());
    EXPECT_EQ(cudaMemcpy(bytes.data(), device_.data(), bytes.size(),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    return bytes;
  }

 private:
  uint32_t ValueDim() const {
    return shape_.value_dim == 0 ? shape_.head_dim : shape_.value_dim;
  }
  // Of K (even) or V of a layer.
  size_t Base(uint32_t part) const {
    if (shape_.layout != Shape::kLatents) return part * part_bytes_;
    return (part - part % 2) * part_bytes_ +
           (part % 2 == 0 ? ValueDim() * element_ : 0);
  }
  PageStrides Strides(bool keys) const {
    uint32_t dims = keys ? shape_.head_dim : ValueDim();
    if (shape_.layout == Shape::kLatents) dims = shape_.head_dim + ValueDim();
    const int64_t dim = element_, head_row = dim * dims,
                  row = head_row * shape_.kv_heads;
    const int64_t page = row * shape_.page_tokens;
    if (shape_.layout == Shape::kNhd || shape_.layout == Shape::kLatents)
      return {page, row, head_row, dim};
    if (shape_.layout == Shape::kHnd || !keys)
      return {page, head_row, head_row * shape_.page_tokens, dim};
    return {page, dim, head_row * shape_.page_tokens, dim * shape_.page_tokens};
  }

  const Shape shape_;
  const uint64_t pages_;
  const uint32_t element_;
  size_t part_bytes_ = 0;
  Bytes host_;
  DeviceArray<uint8_t> device_;
};

inline std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  shapes.push_back({.name = "Smollm"});
  shapes.push_back(
      {.name = "Heads128", .head_dim = 128, .rotary_dim = 128, .rank = 300});
  shapes.push_back({.name = "Heads256Fp16",
                    .dtype = DType::kFp16,
                    .kv_heads = 1,
                    .head_dim = 256,
                    .rotary_dim = 256});
  shapes.push_back({.name = "Heads96Hnd",
                    .head_dim = 96,
                    .rotary_dim = 96,
                    .layout = Shape::kHnd});
  shapes.push_back({.name = "PartlyRotated",
                    .head_dim = 80,
                    .rotary_dim = 32,
                    .page_tokens = 32});
  shapes.push_back({.name = "Neighbours",
                    .rotary_dim = 32,
                    .pairing = RotaryPairing::kNeighbours});
  shapes.push_back(
      {.name = "NotRotated", .rotary_dim = 0, .pairing = RotaryPairing::kNone});
  shapes.push_back({.name = "KeysTransposed",
                    .page_tokens = 128,
                    .layout = Shape::kKeysTransposed});
  shapes.push_back({.name = "Fp8", .dtype = DType::kFp8E4M3});
  shapes.push_back(
      {.name = "Fp32", .dtype = DType::kFp32, .layout = Shape::kHnd});
  shapes.push_back({.name = "NoFeatures", .dims = 0, .history = 0});
  shapes.push_back({.name = "NothingInherited", .inherited_rank = 0});
  shapes.push_back(
      {.name = "FewInherited", .rank = 40, .inherited_rank = 150, .blocks = 3});
  shapes.push_back({.name = "LaterInTheChain",
                    .blocks = 4,
                    .first_block = 5,
                    .page_tokens = 256});
  shapes.push_back({.name = "LargeLatents", .blocks = 12, .scale = 90});
  shapes.push_back({.name = "SomeLargeLatents", .blocks = 12, .scale = 45});
  shapes.push_back({.name = "ManyGroups",
                    .kv_heads = 4,
                    .layers = 6,
                    .layers_per_group = 1,
                    .rank = 100,
                    .blocks = 1});
  shapes.push_back({.name = "Damaged", .blocks = 200, .damage = 2});
  shapes.push_back({.name = "WrongChecksums",
                    .blocks = 60,
                    .damage = 2,
                    .wrong_checksum = true});
  // Three tiles of channels a group, then nine, of which losses are measured on
  // every second.
  shapes.push_back({.name = "OddTiles",
                    .rotary_dim = 32,
                    .pairing = RotaryPairing::kNeighbours,
                    .layers_per_group = 1,
                    .rank = 100,
                    .inherited_rank = 64});
  shapes.push_back({.name = "ManyOddTiles",
                    .rotary_dim = 32,
                    .pairing = RotaryPairing::kNeighbours,
                    .layers = 3,
                    .layers_per_group = 3,
                    .first_block = 5});
  // DeepSeek's latents, and values narrower than keys.
  shapes.push_back({.name = "Latents",
                    .kv_heads = 1,
                    .value_dim = 512,
                    .pairing = RotaryPairing::kNeighbours,
                    .layout = Shape::kLatents});
  shapes.push_back({.name = "NarrowValues",
                    .head_dim = 96,
                    .rotary_dim = 64,
                    .value_dim = 40,
                    .layout = Shape::kHnd});
  // More than there are pairs of warps on a device.
  shapes.push_back(
      {.name = "ManyBlocks", .rank = 20, .inherited_rank = 16, .blocks = 1200});
  // What a rank of an engine holds, where its heads fill whole tiles and where
  // they do not.
  const auto add = [&](uint32_t tp_rank, uint32_t ranks, Shape shape) {
    shape.tp_rank = tp_rank, shape.ranks = ranks;
    shapes.push_back(shape);
  };
  add(1, 2, {.name = "LastOfTwoRanks", .kv_heads = 4});
  add(2, 4,
      {.name = "ThirdOfFourRanks",
       .kv_heads = 8,
       .head_dim = 128,
       .rotary_dim = 128});
  add(3, 4,
      {.name = "OneHeadOf96",
       .kv_heads = 4,
       .head_dim = 96,
       .rotary_dim = 96,
       .layout = Shape::kHnd});
  add(1, 2,
      {.name = "OneHeadOf256",
       .kv_heads = 2,
       .head_dim = 256,
       .rotary_dim = 256});
  add(1, 3,
      {.name = "OneHeadPartlyRotated",
       .kv_heads = 3,
       .head_dim = 80,
       .rotary_dim = 32,
       .page_tokens = 32});
  add(1, 2,
      {.name = "OneHeadOfNeighbours",
       .rotary_dim = 32,
       .pairing = RotaryPairing::kNeighbours,
       .layout = Shape::kKeysTransposed});
  add(3, 4, {.name = "HeadThatTwoRanksHold"});
  add(1, 2,
      {.name = "DamagedForOneOfTwoRanks",
       .kv_heads = 4,
       .blocks = 60,
       .damage = 2});
  return shapes;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_TESTS_KERNELS_CUDA_SHAPES_H_
