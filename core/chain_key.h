// Chain keys: a block is named by its tokens and all before it
// (docs/formats/chain-key.md).
#ifndef LATENTKV_CORE_CHAIN_KEY_H_
#define LATENTKV_CORE_CHAIN_KEY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/digest.h"

namespace latentkv {

// What separates one set of chains from another. Two conversations share blocks
// only if all four are equal.
struct ChainScope {
  std::string tenant;
  Digest model;    // Content of weights, geometry and KV dtype.
  Digest adapter;  // Content of the adapter (LoRA), zero for none.
  std::string salt;
};

// What decides block `block` besides its tokens: digests of images or prompt
// embeddings with their offsets.
struct BlockExtra {
  uint32_t block = 0;
  Bytes bytes;
};

// key[0] of `scope`: the parent of the first block.
Digest ChainRoot(const ChainScope& scope);
// The key of the block of `tokens` (exactly kBlockTokens) behind `parent`.
Digest ChainNext(const Digest& parent, absl::Span<const uint32_t> tokens,
                 ByteSpan extra);

// The keys of all whole blocks of `tokens`, in order: floor(size /
// kBlockTokens) of them. `extras` are sorted by block, at most one a block.
// InvalidArgument if they are not, if one is larger than kExtraBytesMax, or if
// there are more than kChainBlocksMax blocks.
absl::StatusOr<std::vector<Digest>> ChainKeys(
    const ChainScope& scope, absl::Span<const uint32_t> tokens,
    absl::Span<const BlockExtra> extras = {});

}  // namespace latentkv

#endif  // LATENTKV_CORE_CHAIN_KEY_H_
