#include "core/chain_key.h"

#include "absl/strings/str_cat.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr absl::string_view kRootName = "latentkv/1/root";

template <typename T>
ByteSpan BytesOf(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof(value)};
}

}  // namespace

Digest ChainRoot(const ChainScope& scope) {
  const uint32_t tenant_bytes = scope.tenant.size(),
                 salt_bytes = scope.salt.size();
  return Sha256({AsBytes(kRootName), BytesOf(tenant_bytes),
                 AsBytes(scope.tenant), scope.model.span(),
                 scope.adapter.span(), BytesOf(salt_bytes), AsBytes(scope.salt),
                 BytesOf(kBlockTokens)});
}

Digest ChainNext(const Digest& parent, absl::Span<const uint32_t> tokens,
                 ByteSpan extra) {
  const ByteSpan token_bytes(reinterpret_cast<const uint8_t*>(tokens.data()),
                             tokens.size() * sizeof(uint32_t));
  const uint32_t extra_bytes = extra.size();
  return Sha256({parent.span(), token_bytes, BytesOf(extra_bytes), extra});
}

absl::StatusOr<std::vector<Digest>> ChainKeys(
    const ChainScope& scope, absl::Span<const uint32_t> tokens,
    absl::Span<const BlockExtra> extras) {
  const size_t blocks = tokens.size() / kBlockTokens;
  if (blocks > kChainBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens; a chain has at most ",
                     uint64_t{kChainBlocksMax} * kBlockTokens));
  }
  for (size_t i = 0; i < extras.size(); ++i) {
    if (i > 0 && extras[i].block <= extras[i - 1].block) {
      return absl::InvalidArgumentError(
          "extras must be sorted by block, one a block");
    }
    if (extras[i].bytes.size() > kExtraBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the extra of block ", extras[i].block, " has ",
          extras[i].bytes.size(), " bytes, more than ", kExtraBytesMax));
    }
  }
  std::vector<Digest> keys;
  keys.reserve(blocks);
  Digest parent = ChainRoot(scope);
  for (size_t block = 0; block < blocks; ++block) {
    ByteSpan extra;
    if (!extras.empty() && extras.front().block == block) {
      extra = extras.front().bytes;
      extras.remove_prefix(1);
    }
    parent = ChainNext(
        parent, tokens.subspan(block * kBlockTokens, kBlockTokens), extra);
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace latentkv
