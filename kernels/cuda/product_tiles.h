// How the channels of a group are laid into tiles of the restore's product.
#ifndef LATENTKV_KERNELS_CUDA_PRODUCT_TILES_H_
#define LATENTKV_KERNELS_CUDA_PRODUCT_TILES_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/geometry.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/heads.h"

namespace latentkv::cuda {

struct ProductTiles {
  std::vector<ProductTile> tiles;
  // [tiles * kTileChannels] the group's channel of each decoder row; negative:
  // none
  std::vector<int32_t> channels;
  // the same in the order of the factors (restore_product.h)
  std::vector<int32_t> factors;
};

// Of layers [first_layer, last_layer); `rotary_of_layer` indexes the rotary
// tables. Of each layer there are the channels of `heads` alone, for pages that
// begin with their first; empty: all. Unimplemented for a geometry whose heads
// or pairs are no multiples of kChunkChannels: it is restored on the CPU.
absl::StatusOr<ProductTiles> MakeProductTiles(
    const Geometry& geometry, uint32_t first_layer, uint32_t last_layer,
    const std::vector<uint32_t>& rotary_of_layer,
    absl::Span<const HeadRange> heads = {});

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_PRODUCT_TILES_H_
