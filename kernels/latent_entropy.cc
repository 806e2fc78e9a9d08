#include "kernels/latent_entropy.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"
#include "kernels/cpu/rans.h"
#include "kernels/latents.h"

namespace latentkv {
namespace {

absl::Status CheckSizes(absl::Span<const uint8_t> class_of_row, size_t count) {
  if (count != class_of_row.size() * kBlockTokens) {
    return absl::InvalidArgumentError(absl::StrCat(count, " latents for ", class_of_row.size(), " rows of ",
                                                   kBlockTokens));
  }
  for (uint8_t latent_class : class_of_row) {
    if (latent_class >= kLatentClasses) return absl::InvalidArgumentError(absl::StrCat("class ", latent_class));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CodedLatents> EncodeLatents(const LatentTables& tables, absl::Span<const uint8_t> class_of_row,
                                           absl::Span<const int16_t> latents) {
  if (absl::Status status = CheckSizes(class_of_row, latents.size()); !status.ok()) return status;
  CodedLatents coded;
  std::vector<uint8_t> symbols(latents.size()), classes(latents.size());
  kernels::LatentContext context(tables, class_of_row);
  for (size_t row = 0, i = 0; row < class_of_row.size(); ++row) {
    for (uint32_t t = 0; t < kBlockTokens; ++t, ++i) {
      const int q = latents[i];
      classes[i] = static_cast<uint8_t>(context.Class(row, t));
      const bool escaped = std::abs(q) > tables.magnitude_max[classes[i]];
      symbols[i] = escaped ? kEscapeSymbol : static_cast<uint8_t>(q < 0 ? -2 * q - 1 : 2 * q);
      if (escaped) coded.escapes.push_back({static_cast<uint32_t>(i), latents[i]});
      context.Add(t, symbols[i]);
    }
    context.EndRow(row);
  }
  kernels::RansEncoder encoder;
  for (size_t i = symbols.size(); i-- > 0;) {
    const EntropyTable& table = tables.tables[classes[i]];
    encoder.Put(i % kEntropyLanes, table.frequency[symbols[i]], table.start[symbols[i]]);
  }
  coded.bytes = encoder.Finish();
  return coded;
}

absl::Status DecodeLatents(const LatentTables& tables, absl::Span<const uint8_t> class_of_row, ByteSpan coded,
                           absl::Span<uint8_t> symbols, Backend backend) {
  if (absl::Status status = CheckSizes(class_of_row, symbols.size()); !status.ok()) return status;
  kernels::RansStates states;
  absl::StatusOr<ByteSpan> words = kernels::OpenStream(coded, &states);
  if (!words.ok()) return words.status();
  auto* decode = &kernels::DecodeLatentsPortable;
#if defined(__x86_64__)
  if (backend == Backend::kAvx2) decode = &kernels::DecodeLatentsAvx2;
  if (backend == Backend::kAvx512) decode = &kernels::DecodeLatentsAvx512;
#endif
  (void)backend;
  return kernels::CheckStreamEnd(decode(tables, class_of_row, *words, states.data(), symbols.data()), states);
}

}  // namespace latentkv
