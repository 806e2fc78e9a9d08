#include "tests/client/test_pages.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

namespace latentkv {

Geometry SmallGeometry(uint32_t layers, uint32_t heads, uint32_t dims,
                       uint32_t value_dims) {
  LayerGeometry layer;
  layer.value_dim = value_dims;
  layer.kv_heads = heads;
  layer.head_dim = dims;
  layer.rotary_dim = dims;
  layer.pairing = RotaryPairing::kHalves;
  for (uint32_t i = 0; i < dims / 2; ++i)
    layer.inverse_frequencies.push_back(std::pow(10000.0, -2.0 * i / dims));
  Geometry geometry;
  geometry.layers.assign(layers, layer);
  return geometry;
}

TestPages::TestPages(Geometry geometry, Layout layout, uint32_t page_tokens,
                     uint64_t page_count)
    : geometry_(std::move(geometry)),
      layout_(layout),
      page_tokens_(page_tokens),
      page_count_(page_count) {
  for (const LayerGeometry& layer : geometry_.layers) {
    memory_.emplace_back(sizeof(uint16_t) * layer.Channels() * page_tokens_ *
                         page_count_);
  }
  Poison();
}

void TestPages::Poison() {
  for (Bytes& layer : memory_) std::fill(layer.begin(), layer.end(), kPoison);
}

size_t TestPages::Offset(bool key, uint64_t page, uint32_t token, uint32_t head,
                         uint32_t dim) const {
  const LayerGeometry& layer = geometry_.layers[0];
  const size_t heads = layer.kv_heads, dims = layer.DimOf(key),
               tokens = page_tokens_;
  const size_t half = key ? 0 : page_count_ * tokens * layer.ChannelsOf(true);
  switch (layout_) {
    case Layout::kTokensFirst:
      return 2 * (half + ((page * tokens + token) * heads + head) * dims + dim);
    case Layout::kHeadsFirst:
      return 2 * (half + ((page * heads + head) * tokens + token) * dims + dim);
    case Layout::kLatents:
      return 2 * (((page * tokens + token) * heads + head) *
                      (layer.DimOf(true) + layer.DimOf(false)) +
                  (key ? layer.DimOf(false) : 0) + dim);
    case Layout::kEngineCpu:
      break;
  }
  const size_t keys = tokens * layer.DimOf(true),
               area =
                   (page * heads + head) * (keys + tokens * layer.DimOf(false));
  return 2 *
         (key ? area + dim * tokens + token : area + keys + token * dims + dim);
}

PagedCache TestPages::cache() {
  PagedCache cache;
  cache.page_tokens = page_tokens_;
  cache.page_count = page_count_;
  for (Bytes& memory : memory_) {
    PagedLayer& layer = cache.layers.emplace_back();
    for (const bool key : {true, false}) {
      const auto at = [&](uint64_t page, uint32_t token, uint32_t head,
                          uint32_t dim) {
        return static_cast<int64_t>(Offset(key, page, token, head, dim) -
                                    Offset(key, 0, 0, 0, 0));
      };
      (key ? layer.key : layer.value) = memory.data() + Offset(key, 0, 0, 0, 0);
      (key ? layer.key_strides : layer.value_strides) = {
          at(1, 0, 0, 0), at(0, 1, 0, 0), at(0, 0, 1, 0), at(0, 0, 0, 1)};
    }
  }
  return cache;
}

std::vector<uint64_t> TestPages::PageIds(uint64_t tokens, uint64_t seed) const {
  std::vector<uint64_t> ids(page_count_);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64(seed));
  ids.resize((tokens + page_tokens_ - 1) / page_tokens_);
  return ids;
}

void TestPages::Compute(uint64_t seed, const std::vector<uint64_t>& page_ids,
                        uint64_t first, uint64_t last, Values values) {
  for (uint64_t t = first; t < last; ++t) {
    std::mt19937_64 random(seed * 1000003 + t);
    std::normal_distribution<float> normal;
    for (size_t l = 0; l < memory_.size(); ++l) {
      for (const bool key : {true, false}) {
        for (uint32_t h = 0; h < geometry_.layers[l].kv_heads; ++h) {
          for (uint32_t d = 0; d < geometry_.layers[l].DimOf(key); ++d) {
            const float value = normal(random);
            uint16_t bits = values == Values::kAnyBits ? random() : 0;
            if (values == Values::kSmooth)
              std::memcpy(&bits, reinterpret_cast<const uint8_t*>(&value) + 2,
                          2);
            const size_t at =
                Offset(key, page_ids[t / page_tokens_], t % page_tokens_, h, d);
            std::memcpy(memory_[l].data() + at, &bits, sizeof(bits));
          }
        }
      }
    }
  }
}

void TestPages::TakeHeads(const TestPages& whole, uint32_t first_head) {
  for (size_t l = 0; l < memory_.size(); ++l) {
    const LayerGeometry& layer = geometry_.layers[l];
    for (uint64_t t = 0; t < page_count_ * page_tokens_; ++t) {
      for (const bool key : {true, false}) {
        for (uint32_t i = 0; i < layer.ChannelsOf(key); ++i) {
          const uint32_t h = i / layer.DimOf(key), d = i % layer.DimOf(key);
          const uint64_t page = t / page_tokens_, token = t % page_tokens_;
          std::memcpy(memory_[l].data() + Offset(key, page, token, h, d),
                      whole.memory_[l].data() +
                          whole.Offset(key, page, token, first_head + h, d),
                      sizeof(uint16_t));
        }
      }
    }
  }
}

float TestPages::Value(uint32_t layer, bool key,
                       const std::vector<uint64_t>& page_ids, uint64_t token,
                       uint32_t head, uint32_t dim) const {
  float value = 0;
  const size_t at = Offset(key, page_ids[token / page_tokens_],
                           token % page_tokens_, head, dim);
  std::memcpy(reinterpret_cast<uint8_t*>(&value) + 2,
              memory_[layer].data() + at, 2);
  return value;
}

std::vector<uint32_t> TestTokens(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = random() % 49152;
  return tokens;
}

}  // namespace latentkv
