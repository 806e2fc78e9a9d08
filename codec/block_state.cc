#include "codec/block_state.h"

#include <algorithm>

#include "core/limits.h"

namespace latentkv {

namespace {

std::vector<int16_t> Features(const Embedding& embedding, uint32_t first_token,
                              absl::Span<const uint32_t> tokens) {
  std::vector<int16_t> features(size_t{kBlockTokens} * embedding.Features());
  if (features.empty()) return features;
  for (size_t t = 0; t < kBlockTokens; ++t) {
    for (size_t back = 0; back < embedding.history && back <= first_token + t;
         ++back) {
      const uint32_t token = tokens[first_token + t - back];
      if (token >= embedding.vocabulary) continue;
      std::copy_n(
          embedding.rows.begin() + size_t{token} * embedding.dims,
          embedding.dims,
          features.begin() + t * embedding.Features() + back * embedding.dims);
    }
  }
  return features;
}

}  // namespace

int32_t FindKnownSinks(const Basis& basis, absl::Span<const uint32_t> tokens) {
  for (size_t i = basis.sinks().size(); i-- > 0;) {
    const KnownSinks& sinks = basis.sinks()[i];
    if (std::equal(sinks.tokens.begin(), sinks.tokens.end(), tokens.begin()))
      return static_cast<int32_t>(i);
  }
  return -1;
}

BlockState::BlockState(const Basis& basis, uint32_t first_token,
                       absl::Span<const uint32_t> tokens)
    : first_token_(first_token),
      inherited_rank_(basis.inherited_rank()),
      inherited_stride_(basis.inherited_rank() * (basis.groups().size() - 1)),
      features_(Features(basis.embedding(), first_token, tokens)),
      inherited_(size_t{kBlockTokens} * inherited_stride_) {
  if (first_token != 0) return;
  const int32_t known = FindKnownSinks(basis, tokens);
  if (known >= 0) known_sinks_ = &basis.sinks()[known];
}

absl::Span<const int16_t> BlockState::inherited(uint32_t token) const {
  return absl::MakeConstSpan(inherited_)
      .subspan(size_t{token} * inherited_stride_, groups_ * inherited_rank_);
}

void BlockState::AddGroup(absl::Span<const int16_t> latents, uint32_t stride,
                          uint32_t rank) {
  const uint32_t at = groups_ * inherited_rank_,
                 count = std::min(rank, inherited_rank_);
  // The last group has no heirs.
  if (at + inherited_rank_ > inherited_stride_) return;
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    int16_t* to = inherited_.data() + size_t{t} * inherited_stride_ + at;
    std::copy_n(latents.data() + size_t{t} * stride, count, to);
    std::fill(to + count, to + inherited_rank_, 0);
  }
  ++groups_;
}

}  // namespace latentkv
