// The KV heads that one rank of a tensor-parallel engine holds, and raw forms
// of those alone.
#ifndef LATENTKV_KERNELS_HEADS_H_
#define LATENTKV_KERNELS_HEADS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/geometry.h"

namespace latentkv {

// Heads [first, first + count) of a layer.
struct HeadRange {
  uint32_t first = 0, count = 0;

  friend bool operator==(const HeadRange&, const HeadRange&) = default;
};

// Of each layer, what rank `rank` of `ranks` holds: equal shares in the order
// of ranks. Of a layer with fewer heads than ranks it is one, which ranks /
// kv_heads neighbours hold alike. InvalidArgument names a layer whose heads
// neither are a multiple of the ranks nor divide them, or a rank that cannot
// be.
absl::StatusOr<std::vector<HeadRange>> HeadsOfRank(const Geometry& geometry,
                                                   uint32_t rank,
                                                   uint32_t ranks);

// What pages with those heads alone look like: their raw form is that of this
// geometry.
Geometry WithHeads(const Geometry& geometry, absl::Span<const HeadRange> heads);

// Copies heads of layers [first_layer, last_layer) out of the raw form
// (kernels/pages.h) of `tokens` tokens with all heads, `whole`, to that of
// WithHeads, `part`; both begin with first_layer. PutHeads is the reverse.
void TakeHeads(const Geometry& geometry, absl::Span<const HeadRange> heads,
               uint32_t first_layer, uint32_t last_layer, uint32_t tokens,
               ByteSpan whole, absl::Span<uint8_t> part);
void PutHeads(const Geometry& geometry, absl::Span<const HeadRange> heads,
              uint32_t first_layer, uint32_t last_layer, uint32_t tokens,
              ByteSpan part, absl::Span<uint8_t> whole);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_HEADS_H_
