#include "codec/group_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "codec/latent_model.h"
#include "codec/sinks.h"
#include "core/limits.h"
#include "kernels/distance.h"
#include "kernels/latents.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

size_t RowBytes(const LayerGeometry& layer, bool keys) {
  return size_t{layer.ChannelsOf(keys)} * DTypeBytes(layer.dtype);
}

// Calls visit(layer, first channel, byte offset in the raw form, whether keys)
// for K and V of each layer of `group`.
template <typename Visit>
void ForEachPart(const Geometry& geometry, const BasisGroup& group,
                 Visit visit) {
  size_t channel = 0, offset = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    for (const bool keys : {true, false}) {
      visit(l, channel, offset, keys);
      channel += layer.ChannelsOf(keys);
      offset += RowBytes(layer, keys) * kBlockTokens;
    }
  }
}

// Of own latents, in the units of channels.
std::vector<float> DenseDecoder(const BasisGroup& group) {
  std::vector<float> dense(size_t{group.rank} * group.channels);
  for (size_t i = 0; i < dense.size(); ++i)
    dense[i] = group.decoder[i] * group.row_scale[i % group.channels];
  return dense;
}

uint32_t SinkTokens(uint32_t first_token) {
  return first_token == 0 ? kSinkTokens : 0;
}

}  // namespace

absl::StatusOr<std::vector<float>> SolveEncoder(const BasisGroup& group) {
  auto encoder = SolveEncoder(DenseDecoder(group), group.weight, group.rank,
                              group.channels);
  if (!encoder.ok())
    return absl::FailedPreconditionError(encoder.status().message());
  return encoder;
}

GroupCodec::GroupCodec(const Basis& basis, uint32_t index,
                       const LatentTables& latent_tables,
                       RotaryTables* rotary_tables)
    : geometry_(basis.geometry()),
      group_(basis.groups()[index]),
      latent_tables_(latent_tables),
      rotary_tables_(rotary_tables),
      stride_(group_.rank + index * basis.inherited_rank()),
      decoder_(PackDecoder(group_.decoder, stride_, group_.channels)),
      feature_decoder_(PackDecoder(
          group_.feature_rows, basis.embedding().Features(), group_.channels)),
      sink_bytes_(SinkBytes(geometry_, group_.first_layer, group_.last_layer)),
      sink_offset_(SinkBytes(geometry_, 0, group_.first_layer)) {
  for (uint32_t l = group_.first_layer; l < group_.last_layer; ++l)
    for (const bool keys : {true, false})
      token_bytes_ += RowBytes(geometry_.layers[l], keys);
  raw_bytes_ = token_bytes_ * kBlockTokens;
}

std::vector<float> GroupCodec::Channels(uint32_t first_token,
                                        ByteSpan raw) const {
  std::vector<float> channels(size_t{kBlockTokens} * group_.channels);
  ForEachPart(geometry_, group_,
              [&](uint32_t l, size_t channel, size_t offset, bool keys) {
                const LayerGeometry& layer = geometry_.layers[l];
                for (size_t t = 0; t < kBlockTokens; ++t) {
                  ToFloat(layer.dtype,
                          raw.data() + offset + t * RowBytes(layer, keys),
                          layer.ChannelsOf(keys),
                          channels.data() + t * group_.channels + channel);
                }
                if (keys)
                  Unrotate(layer, *rotary_tables_->Get(l, first_token),
                           channels.data() + channel, group_.channels);
              });
  return channels;
}

absl::Status GroupCodec::MakeEncoderOnce() const {
  absl::call_once(encoder_once_, [this] {
    encoder_ = MakeEncoder(DenseDecoder(group_), group_.weight, group_.rank,
                           group_.channels);
  });
  return encoder_.ok()
             ? absl::OkStatus()
             : absl::FailedPreconditionError(encoder_.status().message());
}

void GroupCodec::Base(const BlockState& state, bool predicted,
                      absl::Span<float> values) const {
  if (predicted && !state.features().empty()) {
    return Restore(feature_decoder_, state.features(), feature_decoder_.rank,
                   kBlockTokens, group_.feature_scale, 1.0f, group_.mean,
                   values);
  }
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    std::copy(group_.mean.begin(), group_.mean.end(),
              values.begin() + size_t{t} * group_.channels);
  }
}

std::vector<int16_t> GroupCodec::Inherit(const BlockState& state,
                                         bool predicted) const {
  std::vector<int16_t> latents(size_t{kBlockTokens} * stride_);
  if (!predicted) return latents;
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    const absl::Span<const int16_t> inherited = state.inherited(t);
    std::copy(inherited.begin(), inherited.end(),
              latents.begin() + size_t{t} * stride_ + group_.rank);
  }
  return latents;
}

void GroupCodec::AddLatents(absl::Span<const int16_t> latents, float step,
                            absl::Span<float> values) const {
  Restore(decoder_, latents, stride_, kBlockTokens, group_.row_scale, step,
          values, values);
}

bool GroupCodec::PredictionHelps(absl::Span<const float> channels,
                                 absl::Span<const float> predicted) const {
  // Logarithms, as bits are: one token of values far beyond all others, which
  // will be stored exact, does not decide.
  constexpr float kLeast = std::numeric_limits<float>::min();
  // Tokens that are asked, the last of each four: no sinks.
  constexpr size_t kEvery = 4;
  static_assert(kSinkTokens < kEvery * 2);
  float gain = 0;
  for (size_t t = kEvery * 2 - 1; t < kBlockTokens; t += kEvery) {
    const size_t i = t * group_.channels;
    const absl::Span<const float> token = channels.subspan(i, group_.channels);
    const float with = WeightedDistance(
        token, predicted.subspan(i, group_.channels), group_.weight);
    const float without = WeightedDistance(token, group_.mean, group_.weight);
    if (std::isfinite(with) && std::isfinite(without))
      gain += std::log((without + kLeast) / (with + kLeast));
  }
  return gain > 0;
}

void GroupCodec::QuantizeTokens(ByteSpan raw, absl::Span<const float> channels,
                                absl::Span<const float> predicted, float step,
                                const BlockState& state,
                                std::vector<int16_t>* latents,
                                LatentSection* section) const {
  const uint32_t live = LiveRank(group_.latent_scale, step);
  absl::FixedArray<float, 0> projected(size_t{kBlockTokens} * live);
  Project(*encoder_, channels, predicted, step, kBlockTokens, live,
          absl::MakeSpan(projected));
  for (uint32_t t = SinkTokens(state.first_token()); t < kBlockTokens; ++t) {
    const absl::Span<int16_t> token =
        absl::MakeSpan(*latents).subspan(size_t{t} * stride_, stride_);
    const absl::Span<const float> own =
        absl::MakeConstSpan(projected).subspan(size_t{t} * live, live);
    if (own.empty() || !std::isnan(own.front())) {
      Quantize(own, token.first(live));
      if (LatentsInBounds(token)) continue;
    }
    // Inherited ones too: their sum may be what is out of bounds.
    std::fill(token.begin(), token.end(), 0);
    section->exact_tokens.push_back(t);
    const Bytes values = TakeToken(raw, t);
    section->exact_values.insert(section->exact_values.end(), values.begin(),
                                 values.end());
  }
}

double GroupCodec::Loss(uint32_t first_token, absl::Span<const float> channels,
                        absl::Span<const float> predicted,
                        absl::Span<const int16_t> own, float step,
                        const LatentSection& section) const {
  const std::vector<float> distances =
      RestoredDistances(decoder_, own, stride_, kBlockTokens, group_.row_scale,
                        step, predicted, channels, group_.sensitivity);
  double loss = 0;
  for (uint32_t t = SinkTokens(first_token); t < kBlockTokens; ++t) {
    if (!std::binary_search(section.exact_tokens.begin(),
                            section.exact_tokens.end(), t))
      loss += distances[t];
  }
  return loss / kBlockTokens;
}

double GroupCodec::Loss(uint32_t first_token, absl::Span<const float> channels,
                        absl::Span<const float> restored) const {
  double loss = 0;
  for (uint32_t t = SinkTokens(first_token); t < kBlockTokens; ++t) {
    const size_t at = size_t{t} * group_.channels;
    loss += WeightedDistance(channels.subspan(at, group_.channels),
                             restored.subspan(at, group_.channels),
                             group_.sensitivity);
  }
  return loss / kBlockTokens;
}

absl::StatusOr<EncodedSection> GroupCodec::Encode(
    ByteSpan raw, absl::Span<const float> channels, float step,
    BlockState* state) const {
  if (absl::Status status = MakeEncoderOnce(); !status.ok()) return status;
  LatentSection section;
  section.predicted = true;
  Values predicted = MakeValues();
  Base(*state, true, absl::MakeSpan(predicted));
  std::vector<int16_t> latents = Inherit(*state, true);
  AddLatents(latents, step, absl::MakeSpan(predicted));
  if (!PredictionHelps(channels, predicted)) {
    section.predicted = false;
    Base(*state, false, absl::MakeSpan(predicted));
    latents = Inherit(*state, false);
  }
  QuantizeTokens(raw, channels, predicted, step, *state, &latents, &section);
  if (SinkTokens(state->first_token()) > 0) {
    const ByteSpan known = KnownSinksOf(*state);
    if (!known.empty() && SinksMatch(geometry_, group_.first_layer,
                                     group_.last_layer, known, raw)) {
      section.sink_source = SinkSource::kBasis;
    } else {
      section.sink_source = SinkSource::kStored;
      section.sinks =
          WriteSinks(geometry_, group_.first_layer, group_.last_layer, raw);
    }
  }
  section.latents.resize(size_t{kBlockTokens} * group_.rank);
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    int16_t* token = latents.data() + size_t{t} * stride_;
    std::copy_n(token, group_.rank,
                section.latents.begin() + size_t{t} * group_.rank);
    // What is inherited is in `predicted`.
    std::fill(token + group_.rank, token + stride_, 0);
  }
  EncodedSection encoded;
  encoded.loss =
      Loss(state->first_token(), channels, predicted, latents, step, section);
  state->AddGroup(section.latents, group_.rank, group_.rank);
  absl::StatusOr<Bytes> payload =
      WriteLatentSection(group_, latent_tables_, step, section);
  if (!payload.ok()) return payload.status();
  encoded.payload = *std::move(payload);
  return encoded;
}

absl::Status GroupCodec::Decode(ByteSpan payload, float step, BlockState* state,
                                absl::Span<uint8_t> raw) const {
  const SectionShape shape = {
      token_bytes_, SinkTokens(state->first_token()) > 0 ? sink_bytes_ : 0};
  absl::StatusOr<LatentSection> section =
      ReadLatentSection(group_, latent_tables_, step, shape, payload);
  if (!section.ok()) return section.status();
  const ByteSpan known = KnownSinksOf(*state);
  if (section->sink_source == SinkSource::kBasis && known.empty()) {
    return absl::DataLossError(
        "a section takes its sinks from the basis, which does not know them");
  }
  std::vector<int16_t> latents = Inherit(*state, section->predicted);
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    const absl::Span<int16_t> token =
        absl::MakeSpan(latents).subspan(size_t{t} * stride_, stride_);
    const absl::Span<const int16_t> own =
        absl::MakeConstSpan(section->latents)
            .subspan(size_t{t} * group_.rank, group_.rank);
    if (t < SinkTokens(state->first_token()) ||
        std::binary_search(section->exact_tokens.begin(),
                           section->exact_tokens.end(), t)) {
      if (std::any_of(own.begin(), own.end(),
                      [](int16_t latent) { return latent != 0; })) {
        return absl::DataLossError(
            "a section has latents where it stores values");
      }
      std::fill(token.begin(), token.end(), 0);
      continue;
    }
    std::copy(own.begin(), own.end(), token.begin());
    if (!LatentsInBounds(token))
      return absl::DataLossError("a section's latents are out of bounds");
  }
  Values channels = MakeValues();
  Base(*state, section->predicted, absl::MakeSpan(channels));
  AddLatents(latents, step, absl::MakeSpan(channels));
  ToRaw(state->first_token(), absl::MakeSpan(channels), raw);
  if (section->sink_source != SinkSource::kNone) {
    ReadSinks(geometry_, group_.first_layer, group_.last_layer,
              section->sink_source == SinkSource::kBasis
                  ? known
                  : ByteSpan(section->sinks),
              raw);
  }
  for (size_t i = 0; i < section->exact_tokens.size(); ++i) {
    PutToken(
        ByteSpan(section->exact_values).subspan(i * token_bytes_, token_bytes_),
        section->exact_tokens[i], raw);
  }
  state->AddGroup(section->latents, group_.rank, group_.rank);
  return absl::OkStatus();
}

void GroupCodec::ToRaw(uint32_t first_token, absl::Span<float> channels,
                       absl::Span<uint8_t> raw) const {
  ForEachPart(geometry_, group_,
              [&](uint32_t l, size_t channel, size_t offset, bool keys) {
                const LayerGeometry& layer = geometry_.layers[l];
                if (keys)
                  Rotate(layer, *rotary_tables_->Get(l, first_token),
                         channels.data() + channel, group_.channels);
                for (size_t t = 0; t < kBlockTokens; ++t) {
                  FromFloat(layer.dtype,
                            channels.data() + t * group_.channels + channel,
                            layer.ChannelsOf(keys),
                            raw.data() + offset + t * RowBytes(layer, keys));
                }
              });
}

Bytes GroupCodec::TakeToken(ByteSpan raw, uint32_t token) const {
  Bytes values;
  ForEachPart(
      geometry_, group_, [&](uint32_t l, size_t, size_t offset, bool keys) {
        const size_t row_bytes = RowBytes(geometry_.layers[l], keys);
        const ByteSpan row = raw.subspan(offset + token * row_bytes, row_bytes);
        values.insert(values.end(), row.begin(), row.end());
      });
  return values;
}

void GroupCodec::PutToken(ByteSpan values, uint32_t token,
                          absl::Span<uint8_t> raw) const {
  size_t at = 0;
  ForEachPart(geometry_, group_,
              [&](uint32_t l, size_t, size_t offset, bool keys) {
                const size_t row_bytes = RowBytes(geometry_.layers[l], keys);
                std::copy_n(values.begin() + at, row_bytes,
                            raw.begin() + offset + token * row_bytes);
                at += row_bytes;
              });
}

ByteSpan GroupCodec::KnownSinksOf(const BlockState& state) const {
  if (state.known_sinks() == nullptr) return {};
  return ByteSpan(state.known_sinks()->values)
      .subspan(sink_offset_, sink_bytes_);
}

}  // namespace latentkv
