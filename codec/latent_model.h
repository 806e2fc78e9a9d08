// The static models under which latents are entropy-coded: one distribution a class of scale over step, made from
// integers so that every machine makes the same (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_LATENT_MODEL_H_
#define LATENTKV_CODEC_LATENT_MODEL_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/entropy.h"

namespace latentkv {

inline constexpr uint32_t kLatentClasses = 64;

// Class of a latent whose mean magnitude is `scale` at `step`: quarters of an octave of their ratio, from 2^-6 to
// 2^9.75, to the nearest and clamped.
uint32_t LatentClass(float scale, float step);

// How many leading latents are worth coding at `step`: those of class 2^-3.5 and above (by the model about three tokens
// in a thousand have them non-zero there). `scales` descend.
uint32_t LiveRank(absl::Span<const float> scales, float step);

class LatentModel {
 public:
  LatentModel();

  absl::Span<const EntropyTable* const> tables() const { return pointers_; }  // One a class.
  // The largest magnitude that has a symbol of its own in a class; larger ones escape.
  uint8_t magnitude_max(uint32_t latent_class) const { return magnitude_max_[latent_class]; }

 private:
  std::vector<EntropyTable> tables_;
  std::vector<const EntropyTable*> pointers_;
  std::array<uint8_t, kLatentClasses> magnitude_max_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_LATENT_MODEL_H_
