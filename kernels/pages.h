// The engine's KV memory, described as data, and the raw form of a block.
#ifndef LATENTKV_KERNELS_PAGES_H_
#define LATENTKV_KERNELS_PAGES_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/geometry.h"

namespace latentkv {

// Where element (page, token in page, head, dim) of a tensor lies: base + the
// sum of index times stride. In bytes, so that any layout (NHD, HND, vLLM's
// transposed K on the CPU) is one of these.
struct PageStrides {
  int64_t page = 0, token = 0, head = 0, dim = 0;
};

struct PagedLayer {
  // [pages, page_tokens, kv_heads, DimOf(keys)] through key_strides
  uint8_t* key = nullptr;
  uint8_t* value = nullptr;  // The same through value_strides.
  PageStrides key_strides, value_strides;
};

// Not owned: the engine's memory must outlive every use.
struct PagedCache {
  std::vector<PagedLayer> layers;  // One a layer of the geometry.
  uint32_t page_tokens = 0;
  uint64_t page_count = 0;  // Page ids are checked against it.
};

// A queue of the engine's own on the device that holds its pages: a
// cudaStream_t, of which null is the default stream. Not owned. Of pages in
// host memory it says nothing.
using EngineStream = void*;

// `count` consecutive tokens at `offset` inside page `page`.
struct TokenRun {
  uint64_t page = 0;
  uint32_t offset = 0;
  uint32_t count = 0;
};

// The raw form of tokens: for each layer in order, K then V, each [tokens,
// kv_heads, DimOf(keys)] of the layer's dtype, rotated as the engine holds it.
// RawBytes(geometry, tokens) in all.
uint64_t RawBytes(const Geometry& geometry, uint32_t tokens);
// Of layers [first_layer, last_layer) alone.
uint64_t RawBytes(const Geometry& geometry, uint32_t first_layer,
                  uint32_t last_layer, uint32_t tokens);

// The runs that hold tokens [first, first + count) of a sequence whose pages
// are `page_ids`. InvalidArgument if a token lies behind the last page or a
// page id is not below page_count.
absl::Status RunsOfTokens(absl::Span<const uint64_t> page_ids,
                          uint32_t page_tokens, uint64_t page_count,
                          uint32_t first, uint32_t count,
                          std::vector<TokenRun>* runs);

// Copies the tokens of `runs` into `raw` (RawBytes of their count). Runs must
// have been checked.
void GatherRaw(const Geometry& geometry, const PagedCache& pages,
               absl::Span<const TokenRun> runs, absl::Span<uint8_t> raw);

// Copies layers [first_layer, last_layer) of the raw form, `raw` starting at
// first_layer, into pages.
void ScatterRaw(const Geometry& geometry, uint32_t first_layer,
                uint32_t last_layer, ByteSpan raw, const PagedCache& pages,
                absl::Span<const TokenRun> runs);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_PAGES_H_
