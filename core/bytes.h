// Vocabulary for runs of bytes. All integers on wire and disk are
// little-endian.
#ifndef LATENTKV_CORE_BYTES_H_
#define LATENTKV_CORE_BYTES_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace latentkv {

using Bytes = std::vector<uint8_t>;
using ByteSpan = absl::Span<const uint8_t>;

inline ByteSpan AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline absl::string_view AsText(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Appends plain integers, floats and byte runs to `out`. `out` must outlive it.
class ByteWriter {
 public:
  explicit ByteWriter(Bytes* out) : out_(out) {}
  template <typename T>
  void Put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    out_->insert(out_->end(), bytes, bytes + sizeof(T));
  }
  void PutBytes(ByteSpan bytes) {
    out_->insert(out_->end(), bytes.begin(), bytes.end());
  }

 private:
  Bytes* out_;
};

// Reads what ByteWriter wrote; never reads past the end. After the first read
// that does not fit, ok() is false, every further read returns zero or an empty
// span, and status() is DataLoss.
class ByteReader {
 public:
  explicit ByteReader(ByteSpan bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    ByteSpan run = GetBytes(sizeof(T));
    if (ok_) std::memcpy(&value, run.data(), sizeof(T));
    return value;
  }
  ByteSpan GetBytes(size_t count) {
    if (!ok_ || count > bytes_.size() - offset_) {
      ok_ = false;
      return {};
    }
    ByteSpan run = bytes_.subspan(offset_, count);
    offset_ += count;
    return run;
  }
  bool ok() const { return ok_; }
  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  absl::Status status() const {
    return ok_ ? absl::OkStatus() : absl::DataLossError("truncated record");
  }

 private:
  ByteSpan bytes_;
  size_t offset_ = 0;
  bool ok_ = true;
};

}  // namespace latentkv

#endif  // LATENTKV_CORE_BYTES_H_
