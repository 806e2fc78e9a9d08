// What the groups of one block know of it besides their own bytes.
#ifndef LATENTKV_CODEC_BLOCK_STATE_H_
#define LATENTKV_CODEC_BLOCK_STATE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "codec/basis.h"

namespace latentkv {

// Of the basis's known sinks those of a chain that begins with `tokens`, at
// least kSinkTokens; negative: none.
int32_t FindKnownSinks(const Basis& basis, absl::Span<const uint32_t> tokens);

// Groups go through it in order. The basis outlives it.
class BlockState {
 public:
  // `tokens` of the chain up to the block's last; what is needed of them is
  // copied.
  BlockState(const Basis& basis, uint32_t first_token,
             absl::Span<const uint32_t> tokens);

  uint32_t first_token() const { return first_token_; }
  // int8 values, [kBlockTokens][features]; empty without an embedding.
  absl::Span<const int16_t> features() const { return features_; }
  // Of a chain's first block whose tokens the basis knows; null otherwise.
  const KnownSinks* known_sinks() const { return known_sinks_; }

  // Leading latents of the groups that were added, in order: those of token
  // `token`.
  absl::Span<const int16_t> inherited(uint32_t token) const;
  // The next group's latents, [kBlockTokens][stride], of which the first `rank`
  // are its own.
  void AddGroup(absl::Span<const int16_t> latents, uint32_t stride,
                uint32_t rank);
  // Forgets the groups: the block is encoded anew.
  void Restart() { groups_ = 0; }

 private:
  const uint32_t first_token_;
  const uint32_t inherited_rank_, inherited_stride_;
  std::vector<int16_t> features_;
  const KnownSinks* known_sinks_ = nullptr;
  uint32_t groups_ = 0;
  std::vector<int16_t> inherited_;  // [kBlockTokens][inherited_stride_]
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_BLOCK_STATE_H_
