#include "core/digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace latentkv {

std::string Digest::Hex() const {
  return absl::BytesToHexString(AsText(span()));
}

Digest Sha256(std::initializer_list<ByteSpan> parts) {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  const std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  bool done = context != nullptr &&
              EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (ByteSpan part : parts)
    done =
        done && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  Digest digest;
  done = done &&
         EVP_DigestFinal_ex(context.get(), digest.bytes.data(), nullptr) == 1;
  // Only a machine without memory or without SHA-256 comes here, and a wrong
  // name would mean wrong text.
  if (!done) std::abort();
  return digest;
}

absl::StatusOr<Digest> DigestFromBytes(ByteSpan bytes) {
  Digest digest;
  if (bytes.size() != digest.bytes.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a digest has ", digest.bytes.size(), " bytes, not ", bytes.size()));
  }
  std::copy(bytes.begin(), bytes.end(), digest.bytes.begin());
  return digest;
}

absl::StatusOr<Digest> DigestFromHex(absl::string_view hex) {
  Digest digest;
  const bool digits = std::all_of(
      hex.begin(), hex.end(), [](char c) { return absl::ascii_isxdigit(c); });
  if (hex.size() != 2 * digest.bytes.size() || !digits) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", hex, "\" is not a digest of 64 hexadecimal digits"));
  }
  return DigestFromBytes(AsBytes(absl::HexStringToBytes(hex)));
}

}  // namespace latentkv
