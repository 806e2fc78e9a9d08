// A basis as the kernels of a device see it: docs/formats/basis.md. Nothing is
// owned.
#ifndef LATENTKV_KERNELS_BASIS_VIEW_H_
#define LATENTKV_KERNELS_BASIS_VIEW_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/geometry.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

struct BasisGroupView {
  uint32_t first_layer = 0, last_layer = 0;
  uint32_t channels = 0;  // C
  uint32_t rank = 0;      // R, own latents
  // [C]; feature_scale is empty without features
  absl::Span<const float> mean, feature_scale, row_scale;
  // [R + inherited_rank of each group before][C]
  absl::Span<const int8_t> decoder;
  absl::Span<const int8_t> feature_rows;        // [history * dims][C]
  absl::Span<const float> weight, sensitivity;  // [C], for writing
};

struct BasisView {
  const Geometry* geometry = nullptr;
  const LatentTables* tables = nullptr;
  uint32_t vocabulary = 0, dims = 0, history = 0;
  absl::Span<const int8_t> embedding;  // [vocabulary][dims]
  uint32_t inherited_rank = 0;
  std::vector<BasisGroupView> groups;
  std::vector<ByteSpan> known_sinks;  // Each of all layers.
  // Which of them the chain of these tokens begins with; negative: none.
  std::function<int32_t(absl::Span<const uint32_t> tokens)> known_sinks_of;
  // The class of each of a group's own latents at a step, below kLatentClasses.
  std::function<std::vector<uint8_t>(uint32_t group, float step)> classes;
  // For writing: how many of a group's latents are coded at a step, and its
  // encoder, [C][R] (SolveEncoder of project.h), or FailedPrecondition. Any
  // thread; the latter takes seconds for a large group.
  std::function<uint32_t(uint32_t group, float step)> live_rank;
  std::function<absl::StatusOr<std::vector<float>>(uint32_t group)> encoder;
};

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_BASIS_VIEW_H_
