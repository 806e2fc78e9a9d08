#include "core/geometry.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr uint32_t kGeometryMagic = 0x474b764c;  // "LvKG"
// Eight times the 128 heads of the widest multi-head model.
constexpr uint32_t kHeadsMax = 1024;
// Four times the widest head (256), and MLA's latent of 576.
constexpr uint32_t kHeadDimMax = 1024;

std::string Fault(const LayerGeometry& layer) {
  if (layer.kv_heads == 0 || layer.kv_heads > kHeadsMax)
    return absl::StrCat("kv_heads ", layer.kv_heads);
  if (layer.head_dim == 0 || layer.head_dim > kHeadDimMax)
    return absl::StrCat("head_dim ", layer.head_dim);
  if (layer.value_dim > kHeadDimMax || layer.value_dim == layer.head_dim ||
      (layer.value_dim + layer.head_dim) % 2 > (layer.value_dim == 0)) {
    return absl::StrCat("value_dim ", layer.value_dim);
  }
  if (layer.Channels() > kChannelsMax)
    return absl::StrCat("channels ", layer.Channels());
  if (DTypeBytes(layer.dtype) == 0)
    return absl::StrCat("dtype ", static_cast<int>(layer.dtype));
  if (layer.pairing > RotaryPairing::kNeighbours)
    return absl::StrCat("pairing ", static_cast<int>(layer.pairing));
  if (layer.rotary_dim > layer.head_dim || layer.rotary_dim % 2 != 0 ||
      (layer.rotary_dim == 0) != (layer.pairing == RotaryPairing::kNone)) {
    return absl::StrCat("rotary_dim ", layer.rotary_dim);
  }
  if (!std::isfinite(layer.rotary_scale) || layer.rotary_scale <= 0) {
    return absl::StrCat("rotary_scale ", layer.rotary_scale);
  }
  if (layer.inverse_frequencies.size() != layer.rotary_dim / 2) {
    return absl::StrCat("inverse_frequencies of ",
                        layer.inverse_frequencies.size(), " values");
  }
  for (double frequency : layer.inverse_frequencies) {
    if (!std::isfinite(frequency))
      return "inverse_frequencies that are not finite";
  }
  return "";
}

}  // namespace

uint32_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
    case DType::kFp16:
      return 2;
    case DType::kFp32:
      return 4;
    case DType::kFp8E4M3:
      return 1;
  }
  return 0;
}

absl::Status Geometry::Validate() const {
  if (layers.empty() || layers.size() > kLayersMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a geometry has 1 to ", kLayersMax, " layers, not ", layers.size()));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (const std::string fault = Fault(layers[i]); !fault.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", i, ": ", fault, " is out of bounds"));
    }
  }
  return absl::OkStatus();
}

Bytes Geometry::Serialize() const {
  Bytes bytes;
  ByteWriter writer(&bytes);
  writer.Put(kGeometryMagic);
  writer.Put<uint32_t>(layers.size());
  for (const LayerGeometry& layer : layers) {
    writer.Put(layer.kv_heads);
    writer.Put(layer.head_dim);
    writer.Put(layer.rotary_dim);
    writer.Put(static_cast<uint8_t>(layer.pairing));
    writer.Put(static_cast<uint8_t>(layer.dtype));
    writer.Put<uint16_t>(layer.value_dim);
    writer.Put(layer.rotary_scale);
    writer.Put(layer.window);
    for (double frequency : layer.inverse_frequencies) writer.Put(frequency);
  }
  return bytes;
}

Digest Geometry::ComputeDigest() const { return Sha256({Serialize()}); }

uint64_t Geometry::BytesPerToken() const {
  uint64_t bytes = 0;
  for (const LayerGeometry& layer : layers)
    bytes += uint64_t{layer.Channels()} * DTypeBytes(layer.dtype);
  return bytes;
}

absl::StatusOr<Geometry> ParseGeometry(ByteSpan bytes) {
  ByteReader reader(bytes);
  if (reader.Get<uint32_t>() != kGeometryMagic)
    return absl::DataLossError("not a geometry");
  const uint32_t count = reader.Get<uint32_t>();
  Geometry geometry;
  for (uint32_t i = 0; i < count && i <= kLayersMax && reader.ok(); ++i) {
    LayerGeometry layer;
    layer.kv_heads = reader.Get<uint32_t>();
    layer.head_dim = reader.Get<uint32_t>();
    layer.rotary_dim = reader.Get<uint32_t>();
    layer.pairing = static_cast<RotaryPairing>(reader.Get<uint8_t>());
    layer.dtype = static_cast<DType>(reader.Get<uint8_t>());
    layer.value_dim = reader.Get<uint16_t>();
    layer.rotary_scale = reader.Get<float>();
    layer.window = reader.Get<uint32_t>();
    const uint32_t pairs = layer.rotary_dim / 2;
    if (pairs > reader.remaining() / sizeof(double))
      return absl::DataLossError("truncated geometry");
    for (uint32_t p = 0; p < pairs; ++p)
      layer.inverse_frequencies.push_back(reader.Get<double>());
    geometry.layers.push_back(std::move(layer));
  }
  if (!reader.ok() ||
      (geometry.layers.size() == count && reader.remaining() != 0)) {
    return absl::DataLossError("a geometry of the wrong length");
  }
  if (absl::Status status = geometry.Validate(); !status.ok()) return status;
  return geometry;
}

}  // namespace latentkv
