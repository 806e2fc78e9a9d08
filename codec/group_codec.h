// The arithmetic of one group of a basis: raw layers to latents and back.
#ifndef LATENTKV_CODEC_GROUP_CODEC_H_
#define LATENTKV_CODEC_GROUP_CODEC_H_

#include <cstdint>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/basis.h"
#include "codec/latent_model.h"
#include "codec/rotary_tables.h"
#include "core/bytes.h"
#include "kernels/reconstruct.h"

namespace latentkv {

// A group's section, and the divergence that its committed error is expected to cost, nats a token.
struct EncodedSection {
  Bytes payload;
  double loss = 0;
};

// Thread-safe. Everything it is given outlives it.
class GroupCodec {
 public:
  GroupCodec(const Geometry& geometry, const BasisGroup& group, const LatentModel& model, RotaryTables* tables);

  // Un-rotated keys and values of the group, [kBlockTokens][channels], from the raw form of its layers.
  std::vector<float> Channels(uint32_t first_token, ByteSpan raw) const;

  // Latents of `channels`, not yet divided by a step, [kBlockTokens][rank]. FailedPrecondition if the basis has no
  // encoder (MakeEncoder).
  absl::StatusOr<std::vector<float>> Project(absl::Span<const float> channels) const;

  // The section of a block at `step`. `raw` and `channels` are the group's.
  absl::StatusOr<EncodedSection> Encode(uint32_t first_token, ByteSpan raw, absl::Span<const float> channels,
                                        absl::Span<const float> latents, float step) const;

  // The raw form of the group's layers. DataLoss for bytes that Encode does not write; then `raw` is untouched.
  absl::Status Decode(uint32_t first_token, ByteSpan payload, float step, absl::Span<uint8_t> raw) const;

  const BasisGroup& group() const { return group_; }
  size_t raw_bytes() const { return raw_bytes_; }

 private:
  // [kBlockTokens][channels], un-rotated, of integer latents.
  std::vector<float> Restore(absl::Span<const int16_t> latents, float step) const;
  // Keys of `channels` rotated in place, then everything in the engine's types.
  void ToRaw(uint32_t first_token, std::vector<float>* channels, absl::Span<uint8_t> raw) const;
  // Copies token `token` of the group between the raw form and a run of token_bytes_.
  Bytes TakeToken(ByteSpan raw, uint32_t token) const;
  void PutToken(ByteSpan values, uint32_t token, absl::Span<uint8_t> raw) const;

  const Geometry& geometry_;
  const BasisGroup& group_;
  const LatentModel& model_;
  RotaryTables* const tables_;
  PackedDecoder decoder_;
  size_t token_bytes_ = 0, raw_bytes_ = 0, sink_bytes_ = 0;
  mutable absl::once_flag encoder_once_;
  mutable absl::StatusOr<std::vector<float>> encoder_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_GROUP_CODEC_H_
