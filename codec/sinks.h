// The first tokens of a chain, attention sinks: 8 bits a value, whatever the
// profile (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_SINKS_H_
#define LATENTKV_CODEC_SINKS_H_

#include <cstdint>

#include "core/bytes.h"
#include "core/geometry.h"

namespace latentkv {

// Bytes that the sinks of layers [first_layer, last_layer) take.
size_t SinkBytes(const Geometry& geometry, uint32_t first_layer,
                 uint32_t last_layer);

// Layers [first_layer, last_layer) of the first kSinkTokens tokens of `raw`,
// the raw form of a block that starts at first_layer: for each layer K then V,
// for each token and head the largest magnitude over 127 as a float, then the
// values over it, rounded, as int8. Values must be finite.
Bytes WriteSinks(const Geometry& geometry, uint32_t first_layer,
                 uint32_t last_layer, ByteSpan raw);

// The same of all layers from floats: for each layer K then V,
// [kSinkTokens][kv_heads][LayerGeometry::DimOf].
Bytes WriteSinks(const Geometry& geometry, const float* values);

// Whether `sinks` say what `raw` holds: in K and in V of each layer, their
// difference has at most a thousandth of the energy. (8 bits a value leave a
// third of that at worst; another engine's rounding adds less.)
bool SinksMatch(const Geometry& geometry, uint32_t first_layer,
                uint32_t last_layer, ByteSpan sinks, ByteSpan raw);

// The inverse of WriteSinks, into `raw`. `sinks` has SinkBytes bytes.
void ReadSinks(const Geometry& geometry, uint32_t first_layer,
               uint32_t last_layer, ByteSpan sinks, absl::Span<uint8_t> raw);

}  // namespace latentkv

#endif  // LATENTKV_CODEC_SINKS_H_
