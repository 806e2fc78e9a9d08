#include "client/c/boundary.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/limits.h"

namespace latentkv::c_api {
namespace {

thread_local std::string last_error;

latentkv_code CodeOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return static_cast<latentkv_code>(code);
    default:
      return LATENTKV_INTERNAL;
  }
}

}  // namespace

latentkv_code Report(const absl::Status& status) noexcept {
  if (status.ok()) return LATENTKV_OK;
  try {
    last_error = std::string(status.message());
  } catch (const std::exception&) {
    last_error.clear();
  }
  return CodeOf(status.code());
}

const char* LastError() noexcept { return last_error.c_str(); }

absl::Status NotNull(const void* pointer, const char* name) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is NULL"));
}

absl::Status CheckStructBytes(size_t struct_bytes, size_t expected,
                              const char* name) {
  if (struct_bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ".struct_bytes is ", struct_bytes, ", not ", expected,
                   ": the caller was built for another version"));
}

std::string TextOr(const char* text, const char* otherwise) {
  return text == nullptr ? otherwise : text;
}

Digest DigestAt(const uint8_t* bytes) {
  Digest digest;
  std::copy_n(bytes, digest.bytes.size(), digest.bytes.begin());
  return digest;
}

absl::StatusOr<Geometry> GeometryOf(const latentkv_layer* layers,
                                    uint32_t layer_count) {
  absl::Status status = NotNull(layers, "layers");
  if (!status.ok()) return status;
  if (layer_count > kLayersMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(layer_count, " layers; at most ", kLayersMax));
  }
  Geometry geometry;
  for (uint32_t i = 0; i < layer_count; ++i) {
    const latentkv_layer& from = layers[i];
    if (from.rotary_dim > from.head_dim || from.head_dim > kChannelsMax ||
        from.value_dim > kChannelsMax || from.dtype > 0xff ||
        from.pairing > 0xff) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", i, " has a field out of bounds"));
    }
    const uint32_t pairs = from.rotary_dim / 2;
    if (pairs > 0)
      status = NotNull(from.inverse_frequencies, "inverse_frequencies");
    if (!status.ok()) return status;
    LayerGeometry& layer = geometry.layers.emplace_back();
    layer.kv_heads = from.kv_heads;
    layer.head_dim = from.head_dim;
    layer.value_dim = from.value_dim;
    layer.rotary_dim = from.rotary_dim;
    layer.pairing = static_cast<RotaryPairing>(from.pairing);
    layer.rotary_scale = from.rotary_scale;
    layer.window = from.window;
    layer.dtype = static_cast<DType>(from.dtype);
    layer.inverse_frequencies.assign(from.inverse_frequencies,
                                     from.inverse_frequencies + pairs);
  }
  return geometry;
}

absl::Status CopyOut(const void* bytes, size_t count, uint8_t** copy,
                     size_t* copy_bytes) {
  auto* memory = static_cast<uint8_t*>(std::malloc(std::max<size_t>(count, 1)));
  if (memory == nullptr) return absl::ResourceExhaustedError("out of memory");
  if (count > 0) std::memcpy(memory, bytes, count);
  *copy = memory;
  *copy_bytes = count;
  return absl::OkStatus();
}

}  // namespace latentkv::c_api
