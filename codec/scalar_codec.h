// Blocks of a model that nobody calibrated, or of text that its basis does not
// hold: each layer quantized by itself,
// with steps in proportion to what it holds, and entropy-coded
// (docs/formats/payload.md). Where a basis takes 50 times off, this takes 4
// to 5.
#ifndef LATENTKV_CODEC_SCALAR_CODEC_H_
#define LATENTKV_CODEC_SCALAR_CODEC_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/rotary_tables.h"
#include "core/bytes.h"
#include "core/geometry.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

// The profile that needs no basis, and its step: 4.4 times at the divergence of
// 4-bit KIVI (docs/performance.md).
inline constexpr char kScalarProfile[] = "uncalibrated";
inline constexpr float kScalarStep = 0.42f;

// Nats a token that a step is expected to cost. Measured on SmolLM2; of another
// model it says the order alone.
float ScalarLoss(float step);

// Thread-safe. Everything it is given outlives it.
class ScalarCodec {
 public:
  ScalarCodec(const Geometry& geometry, const LatentTables& latent_tables,
              RotaryTables* rotary_tables)
      : geometry_(geometry),
        latent_tables_(latent_tables),
        rotary_tables_(rotary_tables) {}

  // The section of layer `layer` of a block, from its raw form. OutOfRange for
  // values that are not finite or too far apart for it.
  absl::StatusOr<Bytes> Encode(uint32_t layer, uint32_t first_token,
                               ByteSpan raw, float step) const;
  // The raw form of the layer. DataLoss for bytes that are no such section;
  // then `raw` may be written in part.
  absl::Status Decode(uint32_t layer, uint32_t first_token, ByteSpan payload,
                      absl::Span<uint8_t> raw) const;

 private:
  const Geometry& geometry_;
  const LatentTables& latent_tables_;
  RotaryTables* const rotary_tables_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_SCALAR_CODEC_H_
