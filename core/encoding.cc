#include "core/encoding.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace latentkv {

static_assert(sizeof(Digest) + sizeof(float) == kEncodingBytes);

const Digest& ScalarQuantizer() {
  static const Digest digest = Sha256({AsBytes("latentkv/scalar/1")});
  return digest;
}

std::string Encoding::ToBytes() const {
  std::string bytes(AsText(basis.span()));
  bytes.append(reinterpret_cast<const char*>(&step), sizeof(step));
  return bytes;
}

std::string Encoding::ToString() const {
  if (IsExact()) return "exact";
  return absl::StrCat(IsScalar() ? "scalar" : basis.Hex().substr(0, 8), "@",
                      step);
}

absl::StatusOr<Encoding> EncodingFromBytes(ByteSpan bytes) {
  if (bytes.size() != kEncodingBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an encoding has ", kEncodingBytes, " bytes, not ", bytes.size()));
  }
  Encoding encoding;
  std::memcpy(encoding.basis.bytes.data(), bytes.data(), sizeof(Digest));
  std::memcpy(&encoding.step, bytes.data() + sizeof(Digest), sizeof(float));
  // Compared as bits: a step of -0 is not what ToBytes writes for `exact`.
  uint32_t bits;
  std::memcpy(&bits, &encoding.step, sizeof(bits));
  if (encoding.IsExact()
          ? bits != 0
          : !std::isfinite(encoding.step) || encoding.step <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("step ", encoding.step, " is not one of ",
                     encoding.IsExact() ? "exact" : "a basis"));
  }
  return encoding;
}

}  // namespace latentkv
