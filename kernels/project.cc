#include "kernels/project.h"

#include <cblas.h>

#include <cmath>

#include "absl/strings/str_cat.h"

extern "C" {
// LAPACK, part of OpenBLAS; Debian packs no header with it. The last argument is the length of `uplo`.
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, size_t uplo_length);
void spotrs_(const char* uplo, const int* n, const int* nrhs, const float* a, const int* lda, float* b, const int* ldb,
             int* info, size_t uplo_length);
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

// The lower triangle, by columns, of D W D'; false if it is not positive definite.
bool Factor(const std::vector<float>& gram, float ridge, int rank, std::vector<float>* factor) {
  *factor = gram;
  for (int r = 0; r < rank; ++r) (*factor)[static_cast<size_t>(r) * rank + r] += ridge;
  int info = 0;
  spotrf_("L", &rank, factor->data(), &rank, &info, 1);
  return info == 0;
}

}  // namespace

absl::StatusOr<std::vector<float>> MakeEncoder(absl::Span<const float> decoder, absl::Span<const float> weight,
                                               uint32_t rank, uint32_t channels) {
  if (rank == 0 || channels == 0 || decoder.size() != size_t{rank} * channels || weight.size() != channels) {
    return absl::InvalidArgumentError(absl::StrCat("a decoder of ", decoder.size(), " values and ", weight.size(),
                                                   " weights for rank ", rank, " and ", channels, " channels"));
  }
  UseOneThread();
  std::vector<float> scaled(decoder.begin(), decoder.end());  // D sqrt(W)
  std::vector<float> encoder(decoder.size());                 // W D', by columns of rank: what is solved for in place
  for (uint32_t c = 0; c < channels; ++c) {
    if (!(weight[c] >= 0)) return absl::InvalidArgumentError(absl::StrCat("weight ", weight[c], " of channel ", c));
    const float root = std::sqrt(weight[c]);
    for (uint32_t r = 0; r < rank; ++r) {
      const size_t at = size_t{r} * channels + c;
      scaled[at] *= root;
      encoder[size_t{c} * rank + r] = decoder[at] * weight[c];
    }
  }
  std::vector<float> gram(size_t{rank} * rank), factor;
  cblas_ssyrk(CblasColMajor, CblasLower, CblasTrans, rank, channels, 1.0f, scaled.data(), channels, 0.0f, gram.data(),
              rank);
  double trace = 0;
  for (uint32_t r = 0; r < rank; ++r) trace += gram[size_t{r} * rank + r];
  const int n = static_cast<int>(rank), columns = static_cast<int>(channels);
  if (!Factor(gram, 0, n, &factor) && !Factor(gram, static_cast<float>(1e-7 * trace / rank), n, &factor)) {
    return absl::InvalidArgumentError("the decoder's weighted rows are not independent: there is no encoder");
  }
  int info = 0;
  spotrs_("L", &n, &columns, factor.data(), &n, encoder.data(), &n, &info, 1);
  for (float value : encoder) {
    if (!std::isfinite(value)) return absl::InvalidArgumentError("the decoder has no finite encoder");
  }
  return encoder;
}

void Project(absl::Span<const float> values, absl::Span<const float> encoder, uint32_t tokens, uint32_t live,
             uint32_t rank, uint32_t channels, absl::Span<float> latents) {
  if (live == 0) return;
  UseOneThread();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, tokens, live, channels, 1.0f, values.data(), channels,
              encoder.data(), rank, 0.0f, latents.data(), live);
}

}  // namespace latentkv
