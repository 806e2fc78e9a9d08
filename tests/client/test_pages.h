// An engine's memory in several layouts, addressed element by element, on its
// own account.
#ifndef LATENTKV_TESTS_CLIENT_TEST_PAGES_H_
#define LATENTKV_TESTS_CLIENT_TEST_PAGES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/bytes.h"
#include "core/geometry.h"
#include "kernels/pages.h"

namespace latentkv {

// Layers of `heads` heads of `dims` dimensions in bf16, rotated by halves.
Geometry SmallGeometry(uint32_t layers = 3, uint32_t heads = 2,
                       uint32_t dims = 8, uint32_t value_dims = 0);

enum class Layout {
  kTokensFirst,  // K and V apart: [page, token, head, dim]
  kHeadsFirst,   // K and V apart: [page, head, token, dim]
  // [page, head, K transposed: dim, token; then V: token, dim], as vLLM on the
  // CPU
  kEngineCpu,
  // One tensor: [page, token, head, V, then K], as vLLM keeps latents.
  kLatents,
};
inline const std::vector<Layout> kLayouts = {
    Layout::kTokensFirst, Layout::kHeadsFirst, Layout::kEngineCpu};

// Of a normal distribution, which can be coded; or nothing that can.
enum class Values { kSmooth, kAnyBits };

// The memory of one engine. Every byte is poison until it is written.
class TestPages {
 public:
  static constexpr uint8_t kPoison = 0xa5;

  TestPages(Geometry geometry, Layout layout, uint32_t page_tokens,
            uint64_t page_count);

  PagedCache cache();
  uint32_t page_tokens() const { return page_tokens_; }
  // Pages for `tokens` tokens, in no particular order.
  std::vector<uint64_t> PageIds(uint64_t tokens, uint64_t seed) const;

  // The keys and values of tokens [first, last) of sequence `seed`, as an
  // engine would have computed them.
  void Compute(uint64_t seed, const std::vector<uint64_t>& page_ids,
               uint64_t first, uint64_t last, Values values = Values::kSmooth);
  // What the pages of `whole`, as many and as large, hold of heads [first_head,
  // ...), as many as these have.
  void TakeHeads(const TestPages& whole, uint32_t first_head);
  void Poison();
  // Of all layers, as they lie.
  const std::vector<Bytes>& memory() const { return memory_; }
  float Value(uint32_t layer, bool key, const std::vector<uint64_t>& page_ids,
              uint64_t token, uint32_t head, uint32_t dim) const;

 private:
  size_t Offset(bool key, uint64_t page, uint32_t token, uint32_t head,
                uint32_t dim) const;

  Geometry geometry_;
  Layout layout_;
  uint32_t page_tokens_;
  uint64_t page_count_;
  std::vector<Bytes> memory_;  // One a layer.
};

// Tokens of sequence `seed`.
std::vector<uint32_t> TestTokens(uint64_t seed, size_t count);

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_TEST_PAGES_H_
