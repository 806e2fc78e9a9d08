#include "kernels/latent_entropy.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/latent_entropy_backends.h"
#include "kernels/cpu/rans.h"

namespace latentkv {
namespace {

absl::Status CheckSizes(absl::Span<const uint8_t> class_of_row, size_t count) {
  if (count != class_of_row.size() * kBlockTokens) {
    return absl::InvalidArgumentError(absl::StrCat(count, " latents for ",
                                                   class_of_row.size(),
                                                   " rows of ", kBlockTokens));
  }
  for (uint8_t latent_class : class_of_row) {
    if (latent_class >= kLatentClasses)
      return absl::InvalidArgumentError(absl::StrCat("class ", latent_class));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CodedLatents> EncodeLatents(
    const LatentTables& tables, absl::Span<const uint8_t> class_of_row,
    absl::Span<const int16_t> latents, Backend backend) {
  if (absl::Status status = CheckSizes(class_of_row, latents.size());
      !status.ok())
    return status;
#if defined(__x86_64__)
  if (backend == Backend::kAvx512)
    return kernels::EncodeLatentsAvx512(tables, class_of_row, latents.data());
#endif
  (void)backend;
  return kernels::EncodeLatentsPortable(tables, class_of_row, latents.data());
}

absl::Status DecodeLatents(const LatentTables& tables,
                           absl::Span<const uint8_t> class_of_row,
                           ByteSpan coded, absl::Span<uint8_t> symbols,
                           Backend backend) {
  if (absl::Status status = CheckSizes(class_of_row, symbols.size());
      !status.ok())
    return status;
  kernels::RansStates states;
  absl::StatusOr<ByteSpan> words = kernels::OpenStream(coded, &states);
  if (!words.ok()) return words.status();
  auto* decode = &kernels::DecodeLatentsPortable;
#if defined(__x86_64__)
  if (backend == Backend::kAvx2) decode = &kernels::DecodeLatentsAvx2;
  if (backend == Backend::kAvx512) decode = &kernels::DecodeLatentsAvx512;
#endif
  (void)backend;
  return kernels::CheckStreamEnd(
      decode(tables, class_of_row, *words, states.data(), symbols.data()),
      states);
}

}  // namespace latentkv
