#include "kernels/cpu/rans.h"

#include <cstring>

#include "absl/strings/str_cat.h"

namespace latentkv::kernels {

Bytes RansEncoder::Finish() const {
  Bytes coded(kStateBytes + words_.size() * sizeof(uint16_t));
  std::memcpy(coded.data(), states_.data(), kStateBytes);
  uint8_t* next = coded.data() + kStateBytes;
  for (auto word = words_.rbegin(); word != words_.rend();
       ++word, next += sizeof(uint16_t)) {
    std::memcpy(next, &*word, sizeof(uint16_t));
  }
  return coded;
}

absl::StatusOr<ByteSpan> OpenStream(ByteSpan coded, RansStates* states) {
  if (coded.size() < kStateBytes || coded.size() % sizeof(uint16_t) != 0) {
    return absl::DataLossError(
        absl::StrCat(coded.size(), " bytes cannot be entropy-coded symbols"));
  }
  std::memcpy(states->data(), coded.data(), kStateBytes);
  for (uint32_t x : *states) {
    if (x < kEntropyStart)
      return absl::DataLossError("entropy state out of range");
  }
  return coded.subspan(kStateBytes);
}

absl::Status CheckStreamEnd(bool exact, const RansStates& states) {
  if (!exact)
    return absl::DataLossError("entropy-coded bytes end early or late");
  for (uint32_t x : states) {
    if (x != kEntropyStart)
      return absl::DataLossError(
          "entropy-coded symbols do not end in the start state");
  }
  return absl::OkStatus();
}

}  // namespace latentkv::kernels
