// The arithmetic of one group of a basis: raw layers to latents and back.
#ifndef LATENTKV_CODEC_GROUP_CODEC_H_
#define LATENTKV_CODEC_GROUP_CODEC_H_

#include <cstdint>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/container/fixed_array.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/basis.h"
#include "codec/block_state.h"
#include "codec/latent_section.h"
#include "codec/rotary_tables.h"
#include "core/bytes.h"
#include "core/limits.h"
#include "kernels/latent_entropy.h"
#include "kernels/project.h"
#include "kernels/reconstruct.h"

namespace latentkv {

// A group's section, and the divergence that its committed error is expected to
// cost text like the calibration text, nats a token (ExpectedLoss knows more).
struct EncodedSection {
  Bytes payload;
  double loss = 0;
};

// The group's encoder, [channels][rank] (kernels/project.h); FailedPrecondition
// if there is none.
absl::StatusOr<std::vector<float>> SolveEncoder(const BasisGroup& group);

// Thread-safe. Everything it is given outlives it.
class GroupCodec {
 public:
  // Group `index` of `basis`.
  GroupCodec(const Basis& basis, uint32_t index,
             const LatentTables& latent_tables, RotaryTables* rotary_tables);

  // Un-rotated keys and values of the group, [kBlockTokens][channels], from the
  // raw form of its layers.
  std::vector<float> Channels(uint32_t first_token, ByteSpan raw) const;

  // The section of a block at `step`; `state` holds the groups before and takes
  // this one. `raw` and `channels` are the group's, all finite.
  // FailedPrecondition if the basis has no encoder (MakeEncoder).
  absl::StatusOr<EncodedSection> Encode(ByteSpan raw,
                                        absl::Span<const float> channels,
                                        float step, BlockState* state) const;

  // The raw form of the group's layers. DataLoss for bytes that Encode does not
  // write; then nothing is changed.
  absl::Status Decode(ByteSpan payload, float step, BlockState* state,
                      absl::Span<uint8_t> raw) const;

  // The same of `restored` in the place of `channels`, both of this group;
  // sinks are not counted.
  double Loss(uint32_t first_token, absl::Span<const float> channels,
              absl::Span<const float> restored) const;

  const BasisGroup& group() const { return group_; }
  size_t raw_bytes() const { return raw_bytes_; }

 private:
  // [kBlockTokens][channels], not set: most of what a block needs of memory,
  // and all of it is written.
  using Values = absl::FixedArray<float, 0>;
  Values MakeValues() const {
    return Values(size_t{kBlockTokens} * group_.channels);
  }
  absl::Status MakeEncoderOnce() const;
  // values = what is known before a latent is read: means, and features if
  // `predicted`.
  void Base(const BlockState& state, bool predicted,
            absl::Span<float> values) const;
  // Latents with room for the inherited ones behind the group's own, which are
  // set if `predicted`.
  std::vector<int16_t> Inherit(const BlockState& state, bool predicted) const;
  // values[t][c] += row_scale[c] * step * the decoder's product with `latents`,
  // [kBlockTokens][stride_].
  void AddLatents(absl::Span<const int16_t> latents, float step,
                  absl::Span<float> values) const;
  // Whether the prediction leaves tokens less weighted energy than the means
  // do, on geometric average.
  bool PredictionHelps(absl::Span<const float> channels,
                       absl::Span<const float> predicted) const;
  // Quantizes what `predicted` leaves of `channels` into `latents`; tokens out
  // of bounds go to `section` as they are.
  void QuantizeTokens(ByteSpan raw, absl::Span<const float> channels,
                      absl::Span<const float> predicted, float step,
                      const BlockState& state, std::vector<int16_t>* latents,
                      LatentSection* section) const;
  // Nats a token that `predicted` and `own` latents, [kBlockTokens][stride_],
  // in the place of `channels` are expected to cost; what is stored exact costs
  // nothing.
  double Loss(uint32_t first_token, absl::Span<const float> channels,
              absl::Span<const float> predicted, absl::Span<const int16_t> own,
              float step, const LatentSection& section) const;
  // Keys of `channels` rotated in place, then everything in the engine's types.
  void ToRaw(uint32_t first_token, absl::Span<float> channels,
             absl::Span<uint8_t> raw) const;
  // One token of the group, between the raw form and a run of token_bytes_.
  Bytes TakeToken(ByteSpan raw, uint32_t token) const;
  void PutToken(ByteSpan values, uint32_t token, absl::Span<uint8_t> raw) const;
  ByteSpan KnownSinksOf(const BlockState& state) const;

  const Geometry& geometry_;
  const BasisGroup& group_;
  const LatentTables& latent_tables_;
  RotaryTables* const rotary_tables_;
  const uint32_t stride_;  // Of latents: own and inherited.
  const PackedDecoder decoder_, feature_decoder_;
  size_t token_bytes_ = 0, raw_bytes_ = 0, sink_bytes_ = 0, sink_offset_ = 0;
  mutable absl::once_flag encoder_once_;
  mutable absl::StatusOr<Encoder> encoder_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_GROUP_CODEC_H_
