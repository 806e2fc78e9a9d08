#include "codec/group_codec.h"

#include <algorithm>
#include <cmath>

#include "codec/latent_section.h"
#include "codec/sinks.h"
#include "core/limits.h"
#include "kernels/latents.h"
#include "kernels/project.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

// Calls visit(layer, first channel, byte offset in the raw form, whether keys) for K and V of each layer of `group`.
template <typename Visit>
void ForEachPart(const Geometry& geometry, const BasisGroup& group, Visit visit) {
  size_t channel = 0, offset = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    for (const bool keys : {true, false}) {
      visit(l, channel, offset, keys);
      channel += layer.KvChannels();
      offset += size_t{layer.KvChannels()} * DTypeBytes(layer.dtype) * kBlockTokens;
    }
  }
}

}  // namespace

GroupCodec::GroupCodec(const Geometry& geometry, const BasisGroup& group, const LatentModel& model,
                       RotaryTables* tables)
    : geometry_(geometry),
      group_(group),
      model_(model),
      tables_(tables),
      decoder_(PackDecoder(group.decoder, group.rank, group.channels)),
      sink_bytes_(SinkBytes(geometry, group.first_layer, group.last_layer)) {
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    token_bytes_ += 2 * size_t{geometry.layers[l].KvChannels()} * DTypeBytes(geometry.layers[l].dtype);
  }
  raw_bytes_ = token_bytes_ * kBlockTokens;
}

std::vector<float> GroupCodec::Channels(uint32_t first_token, ByteSpan raw) const {
  std::vector<float> channels(size_t{kBlockTokens} * group_.channels);
  ForEachPart(geometry_, group_, [&](uint32_t l, size_t channel, size_t offset, bool keys) {
    const LayerGeometry& layer = geometry_.layers[l];
    const size_t row_bytes = size_t{layer.KvChannels()} * DTypeBytes(layer.dtype);
    for (size_t t = 0; t < kBlockTokens; ++t) {
      ToFloat(layer.dtype, raw.data() + offset + t * row_bytes, layer.KvChannels(),
              channels.data() + t * group_.channels + channel);
    }
    if (keys) Unrotate(layer, *tables_->Get(l, first_token), channels.data() + channel, group_.channels);
  });
  return channels;
}

absl::StatusOr<std::vector<float>> GroupCodec::Project(absl::Span<const float> channels) const {
  absl::call_once(encoder_once_, [this] {
    std::vector<float> dense(group_.decoder.size());
    for (size_t i = 0; i < dense.size(); ++i) dense[i] = group_.decoder[i] * group_.row_scale[i % group_.channels];
    encoder_ = MakeEncoder(dense, group_.weight, group_.rank, group_.channels);
  });
  if (!encoder_.ok()) return absl::FailedPreconditionError(encoder_.status().message());
  std::vector<float> latents(size_t{kBlockTokens} * group_.rank);
  latentkv::Project(channels, group_.mean, *encoder_, kBlockTokens, group_.rank, group_.channels,
                    absl::MakeSpan(latents));
  return latents;
}

absl::StatusOr<EncodedSection> GroupCodec::Encode(uint32_t first_token, ByteSpan raw, absl::Span<const float> channels,
                                                  absl::Span<const float> latents, float step) const {
  const size_t rank = group_.rank, live = LiveRank(group_.latent_scale, step);
  LatentSection section;
  section.latents.resize(kBlockTokens * rank);
  Quantize(latents, step, absl::MakeSpan(section.latents));
  if (first_token == 0) section.sinks = WriteSinks(geometry_, group_.first_layer, group_.last_layer, raw);
  const uint32_t sinks = first_token == 0 ? kSinkTokens : 0;
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    const absl::Span<int16_t> row = absl::MakeSpan(section.latents).subspan(t * rank, rank);
    std::fill(row.begin() + live, row.end(), 0);
    if (t >= sinks && LatentsInBounds(row)) continue;
    std::fill(row.begin(), row.end(), 0);
    if (t < sinks) continue;
    section.exact_tokens.push_back(t);
    const Bytes values = TakeToken(raw, t);
    section.exact_values.insert(section.exact_values.end(), values.begin(), values.end());
  }
  EncodedSection encoded;
  const std::vector<float> restored = Restore(section.latents, step);
  for (uint32_t t = sinks; t < kBlockTokens; ++t) {
    if (std::binary_search(section.exact_tokens.begin(), section.exact_tokens.end(), t)) continue;
    float loss = 0;
    for (size_t c = 0; c < group_.channels; ++c) {
      const float error = channels[t * group_.channels + c] - restored[t * group_.channels + c];
      loss += group_.sensitivity[c] * error * error;
    }
    encoded.loss += loss / kBlockTokens;
  }
  absl::StatusOr<Bytes> payload = WriteLatentSection(group_, model_, step, section);
  if (!payload.ok()) return payload.status();
  encoded.payload = *std::move(payload);
  return encoded;
}

absl::Status GroupCodec::Decode(uint32_t first_token, ByteSpan payload, float step, absl::Span<uint8_t> raw) const {
  absl::StatusOr<LatentSection> section =
      ReadLatentSection(group_, model_, step, token_bytes_, first_token == 0 ? sink_bytes_ : 0, payload);
  if (!section.ok()) return section.status();
  std::vector<float> channels = Restore(section->latents, step);
  ToRaw(first_token, &channels, raw);
  if (!section->sinks.empty()) ReadSinks(geometry_, group_.first_layer, group_.last_layer, section->sinks, raw);
  for (size_t i = 0; i < section->exact_tokens.size(); ++i) {
    PutToken(ByteSpan(section->exact_values).subspan(i * token_bytes_, token_bytes_), section->exact_tokens[i], raw);
  }
  return absl::OkStatus();
}

std::vector<float> GroupCodec::Restore(absl::Span<const int16_t> latents, float step) const {
  const size_t count = size_t{kBlockTokens} * group_.channels;
  const auto sums = std::make_unique_for_overwrite<int32_t[]>(count);
  Reconstruct(decoder_, latents, kBlockTokens, absl::MakeSpan(sums.get(), count));
  std::vector<float> channels(count);
  Dequantize(absl::MakeConstSpan(sums.get(), count), group_.mean, group_.row_scale, step, absl::MakeSpan(channels));
  return channels;
}

void GroupCodec::ToRaw(uint32_t first_token, std::vector<float>* channels, absl::Span<uint8_t> raw) const {
  ForEachPart(geometry_, group_, [&](uint32_t l, size_t channel, size_t offset, bool keys) {
    const LayerGeometry& layer = geometry_.layers[l];
    if (keys) Rotate(layer, *tables_->Get(l, first_token), channels->data() + channel, group_.channels);
    const size_t row_bytes = size_t{layer.KvChannels()} * DTypeBytes(layer.dtype);
    for (size_t t = 0; t < kBlockTokens; ++t) {
      FromFloat(layer.dtype, channels->data() + t * group_.channels + channel, layer.KvChannels(),
                raw.data() + offset + t * row_bytes);
    }
  });
}

Bytes GroupCodec::TakeToken(ByteSpan raw, uint32_t token) const {
  Bytes values;
  ForEachPart(geometry_, group_, [&](uint32_t l, size_t, size_t offset, bool) {
    const size_t row_bytes = size_t{geometry_.layers[l].KvChannels()} * DTypeBytes(geometry_.layers[l].dtype);
    const ByteSpan row = raw.subspan(offset + token * row_bytes, row_bytes);
    values.insert(values.end(), row.begin(), row.end());
  });
  return values;
}

void GroupCodec::PutToken(ByteSpan values, uint32_t token, absl::Span<uint8_t> raw) const {
  size_t at = 0;
  ForEachPart(geometry_, group_, [&](uint32_t l, size_t, size_t offset, bool) {
    const size_t row_bytes = size_t{geometry_.layers[l].KvChannels()} * DTypeBytes(geometry_.layers[l].dtype);
    std::copy_n(values.begin() + at, row_bytes, raw.begin() + offset + token * row_bytes);
    at += row_bytes;
  });
}

}  // namespace latentkv
