// What a block's coding is expected to cost: its error, and how much more its
// latents take than those of the text that the basis was calibrated on.
#ifndef LATENTKV_CODEC_EXPECTED_LOSS_H_
#define LATENTKV_CODEC_EXPECTED_LOSS_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "codec/basis.h"
#include "codec/latent_section.h"
#include "core/bytes.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

// Thread-safe. `basis` outlives it.
class ExpectedLoss {
 public:
  ExpectedLoss(const Basis& basis, const LatentTables& tables);

  // The factor by which a block at `first_token` costs more, or less, than the
  // basis's sensitivities say: they are of the calibration text, and a model is
  // the more easily led astray the less it foresees. `sections` are those that
  // were just written of it at `step`, one a group. 1 where they say nothing.
  // Callers keep what it is at the first step that they try.
  double Surprise(float step, uint32_t first_token,
                  absl::Span<const ByteSpan> sections) const;

 private:
  const Basis& basis_;
  std::vector<SectionShape> shapes_;  // Of groups, in a chain's first block.
  std::array<double, kLatentClasses> class_bits_;  // Of one latent.
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_EXPECTED_LOSS_H_
