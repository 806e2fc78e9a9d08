// What a model's KV cache looks like, independent of any engine's pages.
#ifndef LATENTKV_CORE_GEOMETRY_H_
#define LATENTKV_CORE_GEOMETRY_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "core/digest.h"

namespace latentkv {

enum class DType : uint8_t { kBf16 = 1, kFp16 = 2, kFp32 = 3, kFp8E4M3 = 4 };
// Bytes of one value; 0 for a value outside the enumeration.
uint32_t DTypeBytes(DType dtype);

enum class RotaryPairing : uint8_t { kNone = 0, kHalves = 1, kNeighbours = 2 };

struct LayerGeometry {
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;  // Of a key, and of a value but for value_dim.
  // Of a value where it is another, 0 where not: of multi-head latent attention
  // the keys are what is rotated, and the values the latent.
  uint32_t value_dim = 0;
  // Leading dimensions of a key that are rotated; even; 0 with kNone.
  uint32_t rotary_dim = 0;
  RotaryPairing pairing = RotaryPairing::kNone;
  // Factor on cosine and sine (YaRN's attention factor).
  float rotary_scale = 1;
  uint32_t window = 0;  // Sliding window in tokens, 0 for full attention.
  DType dtype = DType::kBf16;
  // [rotary_dim / 2], radians a token.
  std::vector<double> inverse_frequencies;

  friend bool operator==(const LayerGeometry&, const LayerGeometry&) = default;
  uint32_t DimOf(bool keys) const {
    return keys || value_dim == 0 ? head_dim : value_dim;
  }
  // Of K or of V, and of both.
  uint32_t ChannelsOf(bool keys) const { return kv_heads * DimOf(keys); }
  uint32_t Channels() const { return ChannelsOf(true) + ChannelsOf(false); }
};

struct Geometry {
  std::vector<LayerGeometry> layers;

  friend bool operator==(const Geometry&, const Geometry&) = default;
  // InvalidArgument names the first layer and field that is out of bounds.
  absl::Status Validate() const;
  Bytes Serialize() const;         // docs/formats/geometry.md
  Digest ComputeDigest() const;    // SHA-256 of Serialize().
  uint64_t BytesPerToken() const;  // Raw K and V of all layers.
};

// Validated. DataLoss for truncated or trailing bytes, InvalidArgument as
// Validate.
absl::StatusOr<Geometry> ParseGeometry(ByteSpan bytes);

}  // namespace latentkv

#endif  // LATENTKV_CORE_GEOMETRY_H_
