// How a block was encoded. With the chain key it names a record.
#ifndef LATENTKV_CORE_ENCODING_H_
#define LATENTKV_CORE_ENCODING_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "core/digest.h"

namespace latentkv {

// 32 of basis digest, 4 of step as IEEE binary32.
inline constexpr size_t kEncodingBytes = 36;

// What stands in the place of a basis for blocks that are quantized without one
// (docs/formats/payload.md): the digest of the ASCII text "latentkv/scalar/1".
const Digest& ScalarQuantizer();

// `exact` has a zero digest and step 0; any other encoding has the digest of
// its basis, or ScalarQuantizer, and a finite step above 0.
struct Encoding {
  Digest basis;
  float step = 0;

  static Encoding Exact() { return {}; }
  bool IsExact() const { return basis.IsZero(); }
  bool IsScalar() const { return basis == ScalarQuantizer(); }
  friend bool operator==(const Encoding&, const Encoding&) = default;
  // kEncodingBytes bytes: digest, then step.
  std::string ToBytes() const;
  // "exact", "scalar@<step>" or "<8 hex digits of the basis>@<step>".
  std::string ToString() const;
};

// InvalidArgument unless `bytes` is what ToBytes writes.
absl::StatusOr<Encoding> EncodingFromBytes(ByteSpan bytes);

}  // namespace latentkv

#endif  // LATENTKV_CORE_ENCODING_H_
