#include "tests/codec/synthetic.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>

#include "codec/block_state.h"
#include "codec/latent_model.h"
#include "codec/sinks.h"
#include "core/frame.h"
#include "core/limits.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

constexpr uint32_t kRank = 24, kLayersPerGroup = 2;
// Of the drawn values, against deviations of about 3: what no latent holds.
constexpr float kNoise = 0.01f;

size_t PartBytes(const LayerGeometry& layer, bool keys) {
  return size_t{layer.ChannelsOf(keys)} * DTypeBytes(layer.dtype) *
         kBlockTokens;
}

std::vector<float> Uniform(size_t count, float low, float high,
                           Random* random) {
  std::vector<float> values(count);
  for (float& value : values) value = random->Between(low, high);
  return values;
}

std::vector<int8_t> Matrix(size_t rows, size_t columns, int bound,
                           Random* random) {
  std::vector<int8_t> values(rows * columns);
  for (int8_t& value : values) value = random->Signed(bound);
  return values;
}

BasisGroup MakeGroup(const BasisParts& parts, uint32_t index, Random* random) {
  BasisGroup group;
  group.first_layer = index * kLayersPerGroup;
  group.last_layer = group.first_layer + kLayersPerGroup;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    group.channels += parts.geometry.layers[l].Channels();
  }
  group.rank = kRank;
  const uint32_t features = parts.embedding.Features();
  group.mean = Uniform(group.channels, -1, 1, random);
  if (features > 0)
    group.feature_scale = Uniform(group.channels, 0x1p-14f, 0x1p-12f, random);
  group.row_scale = Uniform(group.channels, 0x1p-11f, 0x1p-9f, random);
  group.weight = Uniform(group.channels, 0.5f, 2, random);
  group.sensitivity = Uniform(group.channels, 0x1p-11f, 0x1p-9f, random);
  float scale = 16;
  for (uint32_t r = 0; r < kRank; ++r, scale *= 0.875f)
    group.latent_scale.push_back(scale);
  group.decoder = Matrix(kRank, group.channels, 100, random);
  const std::vector<int8_t> inherited =
      Matrix(index * parts.inherited_rank, group.channels, 50, random);
  group.decoder.insert(group.decoder.end(), inherited.begin(), inherited.end());
  group.feature_rows = Matrix(features, group.channels, 100, random);
  return group;
}

}  // namespace

float Random::Normal() {
  float sum = 0;
  for (int i = 0; i < 12; ++i) sum += Between(-0.5f, 0.5f);
  return sum;
}

float Random::Laplace() {
  // An exponential distribution by straight pieces: leading zeros fall off as
  // 2^-n, and so do the pieces.
  const uint64_t bits = Bits() | 1;
  const float exponential =
      static_cast<float>(std::countl_zero(bits)) + Between(0, 1);
  return (Bits() & 1 ? exponential : -exponential) / 1.5f;
}

Geometry SyntheticGeometry(DType dtype) {
  LayerGeometry layer;
  layer.kv_heads = 2;
  layer.head_dim = 16;
  layer.dtype = dtype;
  layer.pairing = RotaryPairing::kHalves;
  layer.rotary_dim = 16;
  for (double frequency = 1; layer.inverse_frequencies.size() < 8;
       frequency /= 4) {
    layer.inverse_frequencies.push_back(frequency);
  }
  Geometry geometry;
  geometry.layers.assign(4, layer);
  LayerGeometry& last = geometry.layers.back();
  last.pairing = RotaryPairing::kNeighbours;
  last.rotary_dim = 8;
  last.inverse_frequencies.resize(4);
  return geometry;
}

Geometry ValueDimGeometry() {
  LayerGeometry latent;
  latent.kv_heads = 1;
  latent.head_dim = latent.rotary_dim = 4;
  latent.value_dim = 32;
  latent.pairing = RotaryPairing::kNeighbours;
  latent.inverse_frequencies = {1, 0.25};
  LayerGeometry narrow = latent;
  narrow.kv_heads = 2;
  narrow.head_dim = 6;
  narrow.value_dim = 2;
  narrow.pairing = RotaryPairing::kHalves;
  return {{latent, narrow}};
}

Bytes DrawBlock(const Geometry& geometry, uint64_t seed) {
  Random random(seed);
  Bytes raw(RawBytes(geometry, kBlockTokens));
  uint8_t* row = raw.data();
  for (const LayerGeometry& layer : geometry.layers) {
    for (const bool keys : {true, false}) {
      std::vector<float> values(layer.ChannelsOf(keys));
      for (uint32_t t = 0; t < kBlockTokens; ++t) {
        for (float& value : values)
          value = random.Laplace() * (t < kSinkTokens ? 16 : 1);
        FromFloat(layer.dtype, values.data(), values.size(), row);
        row += values.size() * DTypeBytes(layer.dtype);
      }
    }
  }
  return raw;
}

BasisParts SyntheticParts(const SyntheticOptions& options) {
  Random random(20);
  BasisParts parts;
  parts.geometry = SyntheticGeometry(options.dtype);
  parts.description = "a synthetic model";
  parts.profiles = {
      {"high", 0.5f, 0.01f}, {"balanced", 1, 0.04f}, {"small", 2, 0.2f}};
  if (options.embedding)
    parts.embedding = {100, 8, 2, Matrix(100, 8, 127, &random)};
  parts.inherited_rank = options.inherited_rank;
  KnownSinks& sinks = parts.sinks.emplace_back();
  std::copy(std::begin(kKnownSinkTokens), std::end(kKnownSinkTokens),
            sinks.tokens.begin());
  // Far larger than what follows them, as sinks are.
  const std::vector<float> values =
      Uniform(kSinkTokens * parts.geometry.BytesPerToken(), -40, 40, &random);
  sinks.values = WriteSinks(parts.geometry, values.data());
  for (uint32_t g = 0; g < 2; ++g)
    parts.groups.push_back(MakeGroup(parts, g, &random));
  return parts;
}

SyntheticModel::SyntheticModel(const SyntheticOptions& options)
    : basis_(*Basis::Create(SyntheticParts(options))),
      codec_(*Codec::Create(basis_->geometry(), basis_)) {}

std::vector<uint32_t> SyntheticModel::Tokens(size_t count,
                                             uint64_t seed) const {
  Random random(seed);
  std::vector<uint32_t> tokens(std::begin(kKnownSinkTokens),
                               std::end(kKnownSinkTokens));
  while (tokens.size() < count) tokens.push_back(random.Below(100));
  return tokens;
}

std::vector<float> SyntheticModel::DrawGroup(size_t group,
                                             absl::Span<const int16_t> features,
                                             std::vector<float>* inherited,
                                             Random* random) const {
  const BasisGroup& of = basis_->groups()[group];
  const size_t feature_count = features.size() / kBlockTokens,
               heirloom = inherited->size() / kBlockTokens;
  std::vector<float> values;
  std::vector<float> passed_on;
  for (size_t t = 0; t < kBlockTokens; ++t) {
    std::vector<float> latents;
    for (float scale : of.latent_scale)
      latents.push_back(scale * random->Laplace());
    latents.insert(latents.end(), inherited->begin() + t * heirloom,
                   inherited->begin() + (t + 1) * heirloom);
    for (size_t c = 0; c < of.channels; ++c) {
      float value = of.mean[c] + kNoise * random->Normal(), sum = 0;
      for (size_t j = 0; j < feature_count; ++j) {
        sum += static_cast<float>(of.feature_rows[j * of.channels + c] *
                                  features[t * feature_count + j]);
      }
      if (feature_count > 0) value += of.feature_scale[c] * sum;
      sum = 0;
      for (size_t r = 0; r < latents.size(); ++r)
        sum += of.decoder[r * of.channels + c] * latents[r];
      value += of.row_scale[c] * sum;
      values.push_back(value);
    }
    passed_on.insert(passed_on.end(), latents.begin() + of.rank, latents.end());
    passed_on.insert(passed_on.end(), latents.begin(),
                     latents.begin() + basis_->inherited_rank());
  }
  *inherited = passed_on;
  return values;
}

Bytes SyntheticModel::Block(const std::vector<uint32_t>& tokens,
                            uint32_t first_token, uint64_t seed) const {
  Random random(seed);
  const BlockState state(*basis_, first_token, tokens);
  std::vector<float> inherited;
  Bytes raw(RawBytes(geometry(), kBlockTokens));
  uint8_t* part = raw.data();
  for (size_t g = 0; g < basis_->groups().size(); ++g) {
    const BasisGroup& group = basis_->groups()[g];
    std::vector<float> values =
        DrawGroup(g, state.features(), &inherited, &random);
    size_t channel = 0;
    for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
      const LayerGeometry& layer = geometry().layers[l];
      Rotate(layer, MakeRotaryTable(layer, first_token, kBlockTokens),
             values.data() + channel, group.channels);
      for (const bool keys : {true, false}) {
        const size_t width = layer.ChannelsOf(keys);
        for (size_t t = 0; t < kBlockTokens; ++t) {
          FromFloat(layer.dtype, values.data() + t * group.channels + channel,
                    width, part + t * width * DTypeBytes(layer.dtype));
        }
        channel += width;
        part += PartBytes(layer, keys);
      }
    }
  }
  if (first_token == 0) {
    ReadSinks(geometry(), 0, geometry().layers.size(),
              basis_->sinks()[0].values, absl::MakeSpan(raw));
  }
  return raw;
}

BlockPlace PlaceOf(const std::vector<uint32_t>& tokens, uint32_t first_token) {
  return {Sha256({AsBytes("a block's key")}), first_token,
          absl::MakeConstSpan(tokens).first(first_token + kBlockTokens)};
}

BlockPages::BlockPages(const Geometry& geometry)
    : geometry_(geometry),
      memory_(RawBytes(geometry, kBlockTokens), kPoison),
      slot_{{0, 0, kBlockTokens}} {
  cache_.page_tokens = kBlockTokens;
  cache_.page_count = 1;
  uint8_t* part = memory_.data();
  for (const LayerGeometry& layer : geometry_.layers) {
    const auto strides = [&](bool keys) {
      const int64_t element = DTypeBytes(layer.dtype),
                    head = element * layer.DimOf(keys),
                    token = head * layer.kv_heads;
      return PageStrides{token * kBlockTokens, token, head, element};
    };
    uint8_t* const values = part + PartBytes(layer, true);
    cache_.layers.push_back({part, values, strides(true), strides(false)});
    part = values + PartBytes(layer, false);
  }
}

bool BlockPages::Untouched(uint32_t first, uint32_t last) const {
  const auto begin_of = [&](uint32_t layer) {
    return layer < cache_.layers.size() ? cache_.layers[layer].key
                                        : memory_.data() + memory_.size();
  };
  const uint8_t* const begin = begin_of(first);
  const size_t bytes = begin_of(last) - begin;
  // Each byte equal to the one after it: as fast as memory, which fuzzing
  // needs.
  return bytes == 0 ||
         (begin[0] == kPoison && std::memcmp(begin, begin + 1, bytes - 1) == 0);
}

std::vector<Bytes> SectionsOf(const Bytes& frame) {
  std::vector<Bytes> sections;
  const FrameHeader header = *VerifyFrame(frame);
  for (const FrameSection& section : header.sections) {
    sections.emplace_back(frame.begin() + section.offset,
                          frame.begin() + section.offset + section.bytes);
  }
  return sections;
}

Bytes WithSections(const Bytes& frame, const std::vector<Bytes>& sections) {
  return *WriteFrame(*VerifyFrame(frame), sections);
}

absl::Status ReadInto(const Codec& codec, const Encoding& encoding,
                      uint32_t section, ByteSpan payload, BlockReader* reader,
                      BlockPages* pages) {
  // A section behind the last has no layers, and the reader refuses it whatever
  // the memory.
  const auto [first, last] = section < codec.SectionCount(encoding)
                                 ? codec.SectionLayers(encoding, section)
                                 : std::pair<uint32_t, uint32_t>();
  Bytes raw(RawBytes(codec.geometry(), first, last, kBlockTokens));
  absl::Status status =
      reader->ReadSection(section, payload, absl::MakeSpan(raw));
  if (status.ok())
    ScatterRaw(codec.geometry(), first, last, raw, pages->cache(),
               pages->slot());
  return status;
}

absl::Status Restore(const Codec& codec, const Bytes& frame,
                     const BlockPlace& place, BlockPages* pages) {
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(frame, frame.size());
  if (!header.ok()) return header.status();
  auto reader = codec.Open(*header, place);
  if (!reader.ok()) return reader.status();
  for (uint32_t s = 0; s < header->sections.size(); ++s) {
    const FrameSection& section = header->sections[s];
    absl::Status status =
        ReadInto(codec, header->encoding, s,
                 ByteSpan(frame).subspan(section.offset, section.bytes),
                 reader->get(), pages);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Bytes Restored(const Codec& codec, const Bytes& frame,
               const BlockPlace& place) {
  BlockPages pages(codec.geometry());
  return Restore(codec, frame, place, &pages).ok() ? pages.raw() : Bytes();
}

LatentSection ReadSection(const SyntheticModel& model, const Bytes& frame,
                          uint32_t section) {
  static const LatentTables tables = MakeLatentTables();
  const FrameHeader header = *VerifyFrame(frame);
  const BasisGroup& group = model.basis()->groups()[section];
  SectionShape shape;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    shape.exact_token_bytes += model.geometry().layers[l].Channels() *
                               DTypeBytes(model.geometry().layers[l].dtype);
  }
  if (header.first_token == 0)
    shape.sink_bytes =
        SinkBytes(model.geometry(), group.first_layer, group.last_layer);
  return *ReadLatentSection(group, tables, header.encoding.step, shape,
                            SectionsOf(frame)[section]);
}

std::vector<float> ChannelsOf(const Geometry& geometry, const BasisGroup& group,
                              uint32_t first_token, const Bytes& raw) {
  std::vector<float> channels(size_t{kBlockTokens} * group.channels);
  const uint8_t* part = raw.data();
  size_t channel = 0;
  for (uint32_t l = 0; l < group.last_layer; ++l) {
    const LayerGeometry& layer = geometry.layers[l];
    if (l < group.first_layer) {
      part += PartBytes(layer, true) + PartBytes(layer, false);
      continue;
    }
    for (const bool keys : {true, false}) {
      const size_t width = layer.ChannelsOf(keys);
      for (size_t t = 0; t < kBlockTokens; ++t) {
        ToFloat(layer.dtype, part + t * width * DTypeBytes(layer.dtype), width,
                channels.data() + t * group.channels + channel);
      }
      if (keys) {
        Unrotate(layer, MakeRotaryTable(layer, first_token, kBlockTokens),
                 channels.data() + channel, group.channels);
      }
      channel += width;
      part += PartBytes(layer, keys);
    }
  }
  return channels;
}

}  // namespace latentkv
