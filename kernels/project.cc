#include "kernels/project.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/project_backends.h"

extern "C" {
// LAPACK, part of OpenBLAS; Debian packs no header with it. The last argument
// is the length of `uplo`.
void spotrf_(const char* uplo, const int* n, float* a, const int* lda,
             int* info, size_t uplo_length);
void spotrs_(const char* uplo, const int* n, const int* nrhs, const float* a,
             const int* lda, float* b, const int* ldb, int* info,
             size_t uplo_length);
}

namespace latentkv {
namespace {

// The callers' threads are the parallelism.
void UseOneThread() {
  static const bool once = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)once;
}

// A weighted value is rounded to a sixteenth of the step, which adds errors of
// .02 steps to a latent; where a token's values reach beyond kWholeMax of
// these, to what makes them fit, since each 127 more cost one more product.
constexpr float kResolution = 16;
constexpr int32_t kWholeMax = 4 * 127;

// `encoder` is [channels][rank].
Encoder Pack(absl::Span<const float> encoder, absl::Span<const float> weight,
             uint32_t rank) {
  const uint32_t channels = weight.size();
  Encoder packed{std::vector<float>(channels), {}, std::vector<float>(rank)};
  const auto weighted = [&](uint32_t c, uint32_t r) {
    return packed.root_weight[c] > 0
               ? encoder[size_t{c} * rank + r] / packed.root_weight[c]
               : 0.0f;
  };
  for (uint32_t c = 0; c < channels; ++c) {
    packed.root_weight[c] = std::sqrt(weight[c]);
    for (uint32_t r = 0; r < rank; ++r) {
      packed.column_scale[r] =
          std::max(packed.column_scale[r], std::fabs(weighted(c, r)) / 127);
    }
  }
  // Quotients by a subnormal or infinite scale can pass 127; no basis that was
  // calibrated has one.
  for (float& scale : packed.column_scale)
    if (!std::isnormal(scale)) scale = 0;
  std::vector<int8_t> columns(size_t{channels} * rank);
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t r = 0; r < rank; ++r) {
      if (packed.column_scale[r] == 0) continue;
      columns[size_t{c} * rank + r] = static_cast<int8_t>(
          std::nearbyintf(weighted(c, r) / packed.column_scale[r]));
    }
  }
  packed.columns = PackDecoder(columns, channels, rank);
  return packed;
}

// The lower triangle, by columns, of D W D'; false if it is not positive
// definite.
bool Factor(const std::vector<float>& gram, float ridge, int rank,
            std::vector<float>* factor) {
  *factor = gram;
  for (int r = 0; r < rank; ++r)
    (*factor)[static_cast<size_t>(r) * rank + r] += ridge;
  int info = 0;
  spotrf_("L", &rank, factor->data(), &rank, &info, 1);
  return info == 0;
}

}  // namespace

absl::StatusOr<std::vector<float>> SolveEncoder(absl::Span<const float> decoder,
                                                absl::Span<const float> weight,
                                                uint32_t rank,
                                                uint32_t channels) {
  if (rank == 0 || channels == 0 || decoder.size() != size_t{rank} * channels ||
      weight.size() != channels) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a decoder of ", decoder.size(), " values and ", weight.size(),
        " weights for rank ", rank, " and ", channels, " channels"));
  }
  UseOneThread();
  std::vector<float> scaled(decoder.begin(), decoder.end());  // D sqrt(W)
  // W D', by columns of rank: what is solved for in place
  std::vector<float> encoder(decoder.size());
  for (uint32_t c = 0; c < channels; ++c) {
    if (!(weight[c] >= 0))
      return absl::InvalidArgumentError(
          absl::StrCat("weight ", weight[c], " of channel ", c));
    const float root = std::sqrt(weight[c]);
    for (uint32_t r = 0; r < rank; ++r) {
      const size_t at = size_t{r} * channels + c;
      scaled[at] *= root;
      encoder[size_t{c} * rank + r] = decoder[at] * weight[c];
    }
  }
  std::vector<float> gram(size_t{rank} * rank), factor;
  cblas_ssyrk(CblasColMajor, CblasLower, CblasTrans, rank, channels, 1.0f,
              scaled.data(), channels, 0.0f, gram.data(), rank);
  double trace = 0;
  for (uint32_t r = 0; r < rank; ++r) trace += gram[size_t{r} * rank + r];
  const int n = static_cast<int>(rank), columns = static_cast<int>(channels);
  if (!Factor(gram, 0, n, &factor) &&
      !Factor(gram, static_cast<float>(1e-7 * trace / rank), n, &factor)) {
    return absl::InvalidArgumentError(
        "the decoder's weighted rows are not independent: there is no encoder");
  }
  int info = 0;
  spotrs_("L", &n, &columns, factor.data(), &n, encoder.data(), &n, &info, 1);
  for (float value : encoder) {
    if (!std::isfinite(value))
      return absl::InvalidArgumentError("the decoder has no finite encoder");
  }
  return encoder;
}

absl::StatusOr<Encoder> MakeEncoder(absl::Span<const float> decoder,
                                    absl::Span<const float> weight,
                                    uint32_t rank, uint32_t channels) {
  absl::StatusOr<std::vector<float>> encoder =
      SolveEncoder(decoder, weight, rank, channels);
  if (!encoder.ok()) return encoder.status();
  return Pack(*encoder, weight, rank);
}

void Project(const Encoder& encoder, absl::Span<const float> values,
             absl::Span<const float> base, float step, uint32_t tokens,
             uint32_t live, absl::Span<float> latents, Backend backend) {
  const uint32_t channels = encoder.root_weight.size();
  auto* weigh = &kernels::WeighPortable;
  auto* round = &kernels::RoundPortable;
#if defined(__x86_64__)
  if (backend != Backend::kPortable)
    weigh = &kernels::WeighAvx2, round = &kernels::RoundAvx2;
#endif
  // Of whole numbers whose sums with the columns stay in int32.
  const int32_t limit =
      std::min<int64_t>(kWholeMax, std::numeric_limits<int32_t>::max() /
                                       (int64_t{127} * channels));
  const auto whole =
      std::make_unique_for_overwrite<int16_t[]>(size_t{tokens} * channels);
  std::vector<float> unit(tokens), weighted(channels);  // Units are in steps.
  for (uint32_t t = 0; t < tokens; ++t) {
    const size_t at = size_t{t} * channels;
    const float largest =
        weigh(values.data() + at, base.data() + at, encoder.root_weight.data(),
              channels, weighted.data());
    if (!std::isfinite(largest)) {
      unit[t] = std::numeric_limits<float>::quiet_NaN();
      std::fill_n(whole.get() + at, channels, 0);
      continue;
    }
    unit[t] =
        std::max(1 / kResolution, largest / step / static_cast<float>(limit));
    round(weighted.data(), 1 / (step * unit[t]), channels, whole.get() + at);
  }
  const auto sums =
      std::make_unique_for_overwrite<int32_t[]>(size_t{tokens} * live);
  Reconstruct(encoder.columns, {whole.get(), size_t{tokens} * channels},
              channels, tokens, live,
              absl::MakeSpan(sums.get(), size_t{tokens} * live), backend);
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t r = 0; r < live; ++r) {
      latents[size_t{t} * live + r] =
          static_cast<float>(sums[size_t{t} * live + r]) *
          encoder.column_scale[r] * unit[t];
    }
  }
}

}  // namespace latentkv
