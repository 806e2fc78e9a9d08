// One layer of a block without loss: a section of an exact frame
// (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_EXACT_SECTION_H_
#define LATENTKV_CODEC_EXACT_SECTION_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/geometry.h"

namespace latentkv {

// `raw` is the raw form of the layer's block: K then V,
// [kBlockTokens][kv_heads][LayerGeometry::DimOf]. Any bits. Never larger than
// one byte more than `raw`.
absl::StatusOr<Bytes> WriteExactSection(const LayerGeometry& layer,
                                        ByteSpan raw);

// Into `raw`, whose size is that of the raw form. DataLoss unless `payload`
// holds one layer of that size and nothing else; then `raw` may be written in
// part.
absl::Status ReadExactSection(const LayerGeometry& layer, ByteSpan payload,
                              absl::Span<uint8_t> raw);

}  // namespace latentkv

#endif  // LATENTKV_CODEC_EXACT_SECTION_H_
