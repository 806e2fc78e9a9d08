#include "kernels/pages.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/transpose.h"

namespace latentkv {
namespace {

// One of K or V of a layer at the tokens of one run, as the plain array [count,
// heads, dims] and as it lies in a page.
struct Slab {
  uint8_t* page;  // At the run's first token.
  PageStrides strides;
  uint32_t tokens, heads, dims, element;
};

void CopyElements(const uint8_t* from, int64_t from_stride, uint8_t* to,
                  int64_t to_stride, uint32_t count, uint32_t element) {
  for (uint32_t i = 0; i < count; ++i)
    std::memcpy(to + i * to_stride, from + i * from_stride, element);
}

// Copies between `slab` and `raw`, towards the page if kToPage.
template <bool kToPage>
void CopySlab(const Slab& slab, uint8_t* raw) {
  const int64_t row_bytes = int64_t{slab.dims} * slab.element;
  const int64_t token_bytes = row_bytes * slab.heads;
  const PageStrides& strides = slab.strides;
  const auto copy = [](uint8_t* page, uint8_t* plain, size_t bytes) {
    kToPage ? std::memcpy(page, plain, bytes) : std::memcpy(plain, page, bytes);
  };
  if (strides.dim == slab.element) {
    if (strides.head == row_bytes && strides.token == token_bytes) {
      copy(slab.page, raw, slab.tokens * token_bytes);
      return;
    }
    if (strides.head == row_bytes) {
      for (uint32_t t = 0; t < slab.tokens; ++t) {
        copy(slab.page + t * strides.token, raw + t * token_bytes, token_bytes);
      }
      return;
    }
    for (uint32_t h = 0; h < slab.heads; ++h) {
      uint8_t* page = slab.page + h * strides.head;
      uint8_t* plain = raw + h * row_bytes;
      for (uint32_t t = 0; t < slab.tokens; ++t)
        copy(page + t * strides.token, plain + t * token_bytes, row_bytes);
    }
    return;
  }
  for (uint32_t h = 0; h < slab.heads; ++h) {
    uint8_t* page = slab.page + h * strides.head;
    uint8_t* plain = raw + h * row_bytes;
    if (slab.element == 2 && strides.token == 2) {
      // Tokens lie together in the page: [dims, tokens] there, [tokens, dims]
      // here.
      if (kToPage) {
        kernels::Transpose16(plain, token_bytes, page, strides.dim, slab.tokens,
                             slab.dims);
      } else {
        kernels::Transpose16(page, strides.dim, plain, token_bytes, slab.dims,
                             slab.tokens);
      }
      continue;
    }
    for (uint32_t t = 0; t < slab.tokens; ++t) {
      uint8_t* in_page = page + t * strides.token;
      uint8_t* in_plain = plain + t * token_bytes;
      if (kToPage) {
        CopyElements(in_plain, slab.element, in_page, strides.dim, slab.dims,
                     slab.element);
      } else {
        CopyElements(in_page, strides.dim, in_plain, slab.element, slab.dims,
                     slab.element);
      }
    }
  }
}

template <bool kToPage>
void CopyLayers(const Geometry& geometry, uint32_t first_layer,
                uint32_t last_layer, uint8_t* raw, const PagedCache& pages,
                absl::Span<const TokenRun> runs) {
  uint64_t tokens = 0;
  for (const TokenRun& run : runs) tokens += run.count;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    const uint32_t element = DTypeBytes(layer.dtype);
    for (const bool is_key : {true, false}) {
      const uint64_t token_bytes = uint64_t{layer.ChannelsOf(is_key)} * element;
      const PagedLayer& memory = pages.layers[l];
      const PageStrides& strides =
          is_key ? memory.key_strides : memory.value_strides;
      uint8_t* base = is_key ? memory.key : memory.value;
      uint8_t* plain = raw;
      for (const TokenRun& run : runs) {
        uint8_t* page = base + static_cast<int64_t>(run.page) * strides.page +
                        int64_t{run.offset} * strides.token;
        CopySlab<kToPage>({page, strides, run.count, layer.kv_heads,
                           layer.DimOf(is_key), element},
                          plain);
        plain += run.count * token_bytes;
      }
      raw += tokens * token_bytes;
    }
  }
}

}  // namespace

uint64_t RawBytes(const Geometry& geometry, uint32_t tokens) {
  return RawBytes(geometry, 0, geometry.layers.size(), tokens);
}

uint64_t RawBytes(const Geometry& geometry, uint32_t first_layer,
                  uint32_t last_layer, uint32_t tokens) {
  uint64_t bytes = 0;
  for (uint32_t l = first_layer; l < last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    bytes += uint64_t{layer.Channels()} * DTypeBytes(layer.dtype) * tokens;
  }
  return bytes;
}

absl::Status RunsOfTokens(absl::Span<const uint64_t> page_ids,
                          uint32_t page_tokens, uint64_t page_count,
                          uint32_t first, uint32_t count,
                          std::vector<TokenRun>* runs) {
  runs->clear();
  if (page_tokens == 0)
    return absl::InvalidArgumentError("a page must hold at least one token");
  const uint64_t last = uint64_t{first} + count;
  if (last > static_cast<uint64_t>(page_ids.size()) * page_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens [", first, ", ", last, ") lie behind the last of ",
                     page_ids.size(), " pages of ", page_tokens, " tokens"));
  }
  for (uint64_t token = first; token < last;) {
    const uint64_t page = page_ids[token / page_tokens];
    if (page >= page_count) {
      runs->clear();
      return absl::InvalidArgumentError(
          absl::StrCat("page ", page, " of a cache of ", page_count, " pages"));
    }
    const uint32_t offset = token % page_tokens;
    const uint32_t run = std::min<uint64_t>(page_tokens - offset, last - token);
    runs->push_back({page, offset, run});
    token += run;
  }
  return absl::OkStatus();
}

void GatherRaw(const Geometry& geometry, const PagedCache& pages,
               absl::Span<const TokenRun> runs, absl::Span<uint8_t> raw) {
  CopyLayers<false>(geometry, 0, geometry.layers.size(), raw.data(), pages,
                    runs);
}

void ScatterRaw(const Geometry& geometry, uint32_t first_layer,
                uint32_t last_layer, ByteSpan raw, const PagedCache& pages,
                absl::Span<const TokenRun> runs) {
  // kToPage only reads the plain side.
  CopyLayers<true>(geometry, first_layer, last_layer,
                   const_cast<uint8_t*>(raw.data()), pages, runs);
}

}  // namespace latentkv
