#include "codec/sinks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/limits.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

// Calls visit(layer, dimensions, byte offset of the head in the raw form) for
// each sink's heads in the order they are kept in.
template <typename Visit>
void ForEachHead(const Geometry& geometry, uint32_t first_layer,
                 uint32_t last_layer, Visit visit) {
  size_t part = 0;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    for (const bool keys : {true, false}) {
      const uint32_t dim = layer.DimOf(keys);
      const size_t head_bytes = size_t{dim} * DTypeBytes(layer.dtype);
      for (uint32_t head = 0; head < kSinkTokens * layer.kv_heads; ++head)
        visit(layer, dim, part + head * head_bytes);
      part += head_bytes * layer.kv_heads * kBlockTokens;
    }
  }
}

void PutHead(absl::Span<const float> values, Bytes* sinks) {
  ByteWriter writer(sinks);
  float largest = 0;
  for (float value : values) largest = std::max(largest, std::fabs(value));
  const float scale = largest / 127;
  writer.Put(scale);
  for (float value : values) {
    // A scale that underflows is that of a head of nothing.
    const float q = scale > 0 ? std::nearbyintf(value / scale) : 0;
    writer.Put(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
  }
}

}  // namespace

size_t SinkBytes(const Geometry& geometry, uint32_t first_layer,
                 uint32_t last_layer) {
  size_t bytes = 0;
  ForEachHead(geometry, first_layer, last_layer,
              [&](const LayerGeometry&, uint32_t dim, size_t) {
                bytes += sizeof(float) + dim;
              });
  return bytes;
}

Bytes WriteSinks(const Geometry& geometry, uint32_t first_layer,
                 uint32_t last_layer, ByteSpan raw) {
  Bytes sinks;
  std::vector<float> values;
  ForEachHead(geometry, first_layer, last_layer,
              [&](const LayerGeometry& layer, uint32_t dim, size_t at) {
                values.resize(dim);
                ToFloat(layer.dtype, raw.data() + at, values.size(),
                        values.data());
                PutHead(values, &sinks);
              });
  return sinks;
}

Bytes WriteSinks(const Geometry& geometry, const float* values) {
  Bytes sinks;
  ForEachHead(geometry, 0, geometry.layers.size(),
              [&](const LayerGeometry&, uint32_t dim, size_t) {
                PutHead({values, dim}, &sinks);
                values += dim;
              });
  return sinks;
}

bool SinksMatch(const Geometry& geometry, uint32_t first_layer,
                uint32_t last_layer, ByteSpan sinks, ByteSpan raw) {
  constexpr double kEnergyMax = 1e-3;
  ByteReader reader(sinks);
  std::vector<float> values;
  double energy = 0, difference = 0;
  uint32_t heads = 0;
  bool match = true;
  ForEachHead(geometry, first_layer, last_layer,
              [&](const LayerGeometry& layer, uint32_t dim, size_t at) {
                values.resize(dim);
                ToFloat(layer.dtype, raw.data() + at, values.size(),
                        values.data());
                const float scale = reader.Get<float>();
                for (float value : values) {
                  const double error = value - scale * reader.Get<int8_t>();
                  energy += double{value} * value;
                  difference += error * error;
                }
                if (++heads < kSinkTokens * layer.kv_heads) return;
                match = match && difference <= kEnergyMax * energy;
                energy = difference = heads = 0;
              });
  return match;
}

void ReadSinks(const Geometry& geometry, uint32_t first_layer,
               uint32_t last_layer, ByteSpan sinks, absl::Span<uint8_t> raw) {
  ByteReader reader(sinks);
  std::vector<float> values;
  ForEachHead(geometry, first_layer, last_layer,
              [&](const LayerGeometry& layer, uint32_t dim, size_t at) {
                values.resize(dim);
                const float scale = reader.Get<float>();
                for (float& value : values)
                  value = scale * reader.Get<int8_t>();
                FromFloat(layer.dtype, values.data(), values.size(),
                          raw.data() + at);
              });
}

}  // namespace latentkv
