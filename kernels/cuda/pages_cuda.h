// Raw forms of blocks to pages in device memory and back, many blocks in a
// launch. Nothing here allocates or waits, so that launches can be captured in
// a graph; device memory must live until the stream has passed.
#ifndef LATENTKV_KERNELS_CUDA_PAGES_CUDA_H_
#define LATENTKV_KERNELS_CUDA_PAGES_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/geometry.h"
#include "kernels/pages.h"

namespace latentkv {

// One of K or V of a layer, cut into units, the largest powers of 2 up to 16
// bytes that lie together in the page and are aligned there: a token is `rows`
// rows of `units` units.
struct PagePart {
  uint8_t* base = nullptr;
  // Strides in the pages, in bytes.
  int64_t page = 0, token = 0, row = 0, unit = 0;
  // From the first part's, in bytes.
  uint64_t raw_offset = 0;
  uint32_t rows = 0, units = 0, unit_bytes = 0;
};

// Where one token lies.
struct TokenSlot {
  uint32_t page = 0, offset = 0;
};

// K and V of layers [first_layer, last_layer), in the order of the raw form.
// InvalidArgument if a pointer or a stride is no multiple of the values' size,
// which no accelerator reads, or for more than 2^32 pages.
absl::StatusOr<std::vector<PagePart>> PagePartsOf(const Geometry& geometry,
                                                  const PagedCache& pages,
                                                  uint32_t first_layer,
                                                  uint32_t last_layer);

// Units of the part that has the most, in a block.
uint32_t UnitsMax(absl::Span<const PagePart> parts);

// What one launch copies. `parts` and `slots` [blocks][kBlockTokens] are arrays
// in device memory; block b's raw form begins at raw + b * raw_stride, both
// multiples of 16 bytes, in memory that the device reaches.
struct PageCopy {
  const PagePart* parts = nullptr;
  uint32_t part_count = 0;
  uint32_t units_max = 0;  // UnitsMax of the parts.
  const TokenSlot* slots = nullptr;
  uint32_t block_count = 0;
  uint8_t* raw = nullptr;
  uint64_t raw_stride = 0;
};

// Blocks in one launch: the third dimension of a grid.
inline constexpr uint32_t kLaunchBlocksMax = 65535;

// Internal with CUDA's text if the launch fails; InvalidArgument beyond
// kLaunchBlocksMax.
absl::Status GatherRawOnDevice(const PageCopy& copy, cudaStream_t stream);
absl::Status ScatterRawOnDevice(const PageCopy& copy, cudaStream_t stream);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_CUDA_PAGES_CUDA_H_
