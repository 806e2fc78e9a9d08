// SHA-256 digests: names of content (models, geometries, bases, chain keys).
#ifndef LATENTKV_CORE_DIGEST_H_
#define LATENTKV_CORE_DIGEST_H_

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/statusor.h"
#include "core/bytes.h"

namespace latentkv {

struct Digest {
  std::array<uint8_t, 32> bytes{};

  friend bool operator==(const Digest&, const Digest&) = default;
  friend auto operator<=>(const Digest&, const Digest&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const Digest& digest) {
    return H::combine(std::move(state), digest.bytes);
  }
  ByteSpan span() const { return {bytes.data(), bytes.size()}; }
  bool IsZero() const { return *this == Digest{}; }
  std::string Hex() const;
};

// SHA-256 of the concatenation of `parts`.
Digest Sha256(std::initializer_list<ByteSpan> parts);

// InvalidArgument unless `bytes` holds exactly 32 bytes.
absl::StatusOr<Digest> DigestFromBytes(ByteSpan bytes);
// InvalidArgument unless `hex` is 64 hexadecimal digits.
absl::StatusOr<Digest> DigestFromHex(absl::string_view hex);

}  // namespace latentkv

#endif  // LATENTKV_CORE_DIGEST_H_
