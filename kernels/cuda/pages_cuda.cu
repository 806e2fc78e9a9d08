#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "kernels/cuda/pages_cuda.h"

namespace latentkv {
namespace {

constexpr uint32_t kThreads = 256;
// Reads that a thread has under way before its first write.
constexpr uint32_t kUnitsPerThread = 4;
constexpr uint32_t kUnitBytesMax = 16;

template <typename Unit, bool kToPages>
__device__ void CopyUnits(const PagePart& part, const TokenSlot* slots,
                          uint8_t* raw) {
  const uint32_t per_token = part.rows * part.units;
  const uint32_t count = per_token * kBlockTokens;
  const uint32_t first =
      blockIdx.x * (kThreads * kUnitsPerThread) + threadIdx.x;
  Unit held[kUnitsPerThread];
  Unit* to[kUnitsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    const uint32_t at = first + i * kThreads;
    to[i] = nullptr;
    if (at >= count) continue;
    const uint32_t token = at / per_token, rest = at % per_token;
    const uint32_t row = rest / part.units, unit = rest % part.units;
    const TokenSlot slot = slots[token];
    Unit* plain = reinterpret_cast<Unit*>(raw) + at;
    const int64_t offset = int64_t{slot.page} * part.page +
                           int64_t{slot.offset} * part.token +
                           int64_t{row} * part.row + int64_t{unit} * part.unit;
    Unit* paged = reinterpret_cast<Unit*>(part.base + offset);
    held[i] = kToPages ? *plain : *paged;
    to[i] = kToPages ? paged : plain;
  }
#pragma unroll
  for (uint32_t i = 0; i < kUnitsPerThread; ++i) {
    if (to[i] != nullptr) *to[i] = held[i];
  }
}

// A grid of (stretches of a part, parts, blocks).
template <bool kToPages>
__global__ void __launch_bounds__(kThreads) CopyKernel(const PageCopy copy) {
  const PagePart part = copy.parts[blockIdx.y];
  const TokenSlot* slots = copy.slots + size_t{blockIdx.z} * kBlockTokens;
  uint8_t* raw = copy.raw + blockIdx.z * copy.raw_stride + part.raw_offset;
  switch (part.unit_bytes) {
    case 16:
      return CopyUnits<uint4, kToPages>(part, slots, raw);
    case 8:
      return CopyUnits<uint2, kToPages>(part, slots, raw);
    case 4:
      return CopyUnits<uint32_t, kToPages>(part, slots, raw);
    case 2:
      return CopyUnits<uint16_t, kToPages>(part, slots, raw);
    default:
      return CopyUnits<uint8_t, kToPages>(part, slots, raw);
  }
}

template <bool kToPages>
absl::Status Launch(const PageCopy& copy, const char* what,
                    cudaStream_t stream) {
  if (copy.block_count == 0 || copy.part_count == 0 || copy.units_max == 0)
    return absl::OkStatus();
  if (copy.block_count > kLaunchBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(copy.block_count, " blocks in one launch"));
  }
  constexpr uint32_t kStretch = kThreads * kUnitsPerThread;
  const dim3 grid((copy.units_max + kStretch - 1) / kStretch, copy.part_count,
                  copy.block_count);
  CopyKernel<kToPages><<<grid, kThreads, 0, stream>>>(copy);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(what, " pages on the device: ", cudaGetErrorString(error)));
}

// The part of one of K or V, but for where it lies in the raw form.
PagePart PartOf(const LayerGeometry& layer, bool keys, uint8_t* base,
                const PageStrides& strides, uint32_t element) {
  PagePart part{base, strides.page, strides.token, strides.head, strides.dim};
  part.rows = layer.kv_heads;
  const uint32_t dims = layer.DimOf(keys);
  part.units = dims;
  part.unit_bytes = element;
  if (strides.dim != element && dims > 1) return part;
  int64_t row_bytes = int64_t{dims} * element;
  if (layer.kv_heads == 1 || strides.head == row_bytes) {
    row_bytes *= layer.kv_heads;
    part.rows = 1;
    part.row = 0;
  }
  // The lowest bit that any of them has is what all are multiples of.
  const uint64_t any = reinterpret_cast<uintptr_t>(base) | part.page |
                       part.token | part.row | row_bytes | kUnitBytesMax;
  part.unit_bytes = any & -any;
  part.unit = part.unit_bytes;
  part.units = row_bytes / part.unit_bytes;
  return part;
}

}  // namespace

absl::StatusOr<std::vector<PagePart>> PagePartsOf(const Geometry& geometry,
                                                  const PagedCache& pages,
                                                  uint32_t first_layer,
                                                  uint32_t last_layer) {
  if (pages.page_count > uint64_t{1} << 32) {
    return absl::InvalidArgumentError(
        absl::StrCat(pages.page_count, " pages; a device takes 2^32"));
  }
  std::vector<PagePart> parts;
  uint64_t raw_offset = 0;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    const PagedLayer& memory = pages.layers[l];
    const uint32_t element = DTypeBytes(layer.dtype);
    for (const bool is_key : {true, false}) {
      uint8_t* base = is_key ? memory.key : memory.value;
      const PageStrides& strides =
          is_key ? memory.key_strides : memory.value_strides;
      const int64_t any = reinterpret_cast<intptr_t>(base) | strides.page |
                          strides.token | strides.head | strides.dim;
      if (any % element != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "pages of layer ", l,
            ": an address or a stride is no multiple of a value's ", element,
            " bytes"));
      }
      parts.push_back(PartOf(layer, is_key, base, strides, element));
      parts.back().raw_offset = raw_offset;
      raw_offset += uint64_t{layer.ChannelsOf(is_key)} * element * kBlockTokens;
    }
  }
  return parts;
}

uint32_t UnitsMax(absl::Span<const PagePart> parts) {
  uint32_t most = 0;
  for (const PagePart& part : parts)
    most = std::max(most, part.rows * part.units * kBlockTokens);
  return most;
}

absl::Status GatherRawOnDevice(const PageCopy& copy, cudaStream_t stream) {
  return Launch<false>(copy, "gathering from", stream);
}

absl::Status ScatterRawOnDevice(const PageCopy& copy, cudaStream_t stream) {
  return Launch<true>(copy, "scattering to", stream);
}

}  // namespace latentkv
