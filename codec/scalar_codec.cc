#include "codec/scalar_codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "codec/escapes.h"
#include "codec/latent_model.h"
#include "codec/sinks.h"
#include "core/limits.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

constexpr float kLossOfStep = 0.0127f;  // Nats a token at a step of 1.
// Keys finer than values: halves of their cost at equal bytes (SmolLM2).
constexpr float kKeyShare = 0.8f;
// Above, a latent times its scale could be infinite.
constexpr float kScaleMax = 0x1p110f;
constexpr float kLatentMax = 32767;
constexpr float kFp16Max = 65504;
constexpr int kNibbleZero = 8;
// 2^((n - 8) / 4) for n = 0 to 15, to nearest.
constexpr std::array<float, 16> kQuarterOctaves = {
    0x1p-2f, 0x1.306fep-2f, 0x1.6a09e6p-2f, 0x1.ae89fap-2f,
    0x1p-1f, 0x1.306fep-1f, 0x1.6a09e6p-1f, 0x1.ae89fap-1f,
    0x1p0f,  0x1.306fep0f,  0x1.6a09e6p0f,  0x1.ae89fap0f,
    0x1p1f,  0x1.306fep1f,  0x1.6a09e6p1f,  0x1.ae89fap1f};

uint32_t SinkTokens(uint32_t first_token) {
  return first_token == 0 ? kSinkTokens : 0;
}

// Rows are channels: those of keys, then those of values.
size_t FirstRow(const LayerGeometry& layer, bool keys) {
  return keys ? 0 : layer.ChannelsOf(true);
}

// A section's fields but for its sinks.
struct Section {
  explicit Section(const LayerGeometry& layer)
      : key_step(layer.kv_heads),
        value_step(layer.kv_heads),
        mean(layer.ChannelsOf(true)),
        exponent(size_t{kBlockTokens} * layer.kv_heads),
        class_of_row(layer.Channels()),
        rows(size_t{kBlockTokens} * layer.Channels()) {}

  std::vector<float> key_step, value_step;  // [kv_heads]
  std::vector<int8_t> mean;                 // Of keys' channels, in steps.
  // [kBlockTokens][kv_heads], of values' scales: nibbles.
  std::vector<uint8_t> exponent;
  std::vector<uint8_t> class_of_row;  // [channels], keys first.
  std::vector<int16_t> rows;          // [channels][kBlockTokens]
  // Magnitude of what is restored, before rotation.
  float largest = 0;

  float ValueScale(uint32_t token, uint32_t head) const {
    return value_step[head] *
           kQuarterOctaves[exponent[token * value_step.size() + head]];
  }
};

// Whole numbers that are floats: `values` over their scales, to nearest. Scales
// of 0 give 0.
void RoundQuotients(const float* values, const float* scales, float* whole) {
  // Nothing smaller than 1 is left beside it: added and taken off, it rounds.
  constexpr float kRound = 0x1.8p23f;
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    const float quotient = scales[t] > 0 ? values[t] / scales[t] : 0;
    whole[t] = (quotient + kRound) - kRound;
  }
}

// The latents of row `row` from token `first` on: `values` over `scales` to
// nearest, less `offset`. False if one is not held. All finite.
bool Take(const float* values, const float* scales, float offset,
          uint32_t first, size_t row, Section* section) {
  int16_t* latents = section->rows.data() + row * kBlockTokens;
  std::array<float, kBlockTokens> whole;
  RoundQuotients(values, scales, whole.data());
  float largest = 0;
  for (uint32_t t = first; t < kBlockTokens; ++t) {
    const float own = whole[t] - offset;
    largest = std::max(largest, std::fabs(own));
    section->largest =
        std::max(section->largest, std::fabs(whole[t] * scales[t]));
    latents[t] = static_cast<int16_t>(
        static_cast<int32_t>(std::clamp(own, -kLatentMax, kLatentMax)));
  }
  return largest <= kLatentMax;
}

// Sum over the tokens from `first` on.
double Sum(const float* values, uint32_t first) {
  double sum = 0;
  for (uint32_t t = first; t < kBlockTokens; ++t) sum += values[t];
  return sum;
}

// Un-rotated keys of one head, [head_dim][kBlockTokens], those from token
// `first` on.
bool QuantizeKeys(const float* keys, const LayerGeometry& layer, uint32_t head,
                  uint32_t first, float step, Section* section) {
  const uint32_t dim = layer.head_dim, count = kBlockTokens - first;
  std::vector<float> mean(dim);
  std::array<float, kBlockTokens> energy{};
  float largest = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    const float* row = keys + size_t{c} * kBlockTokens;
    mean[c] = static_cast<float>(Sum(row, first) / count);
    for (uint32_t t = 0; t < kBlockTokens; ++t)
      energy[t] += (row[t] - mean[c]) * (row[t] - mean[c]);
    largest = std::max(largest, std::fabs(mean[c]));
  }
  // Keys that hardly change have steps that their mean is not too many of.
  const double spread = std::max(
      std::sqrt(Sum(energy.data(), first) / (dim * count)), largest * 0x1p-12);
  const float scale = static_cast<float>(kKeyShare * step * spread);
  if (!(scale <= kScaleMax) || (scale == 0 && spread > 0)) return false;
  section->key_step[head] = scale;
  std::array<float, kBlockTokens> scales;
  scales.fill(scale);
  bool held = true;
  for (uint32_t c = 0; c < dim; ++c) {
    const size_t row = size_t{head} * dim + c;
    const float steps = scale > 0 ? std::clamp(std::nearbyintf(mean[c] / scale),
                                               -127.0f, 127.0f)
                                  : 0;
    section->mean[row] = static_cast<int8_t>(steps);
    held &= Take(keys + size_t{c} * kBlockTokens, scales.data(), steps, first,
                 row, section);
  }
  return held;
}

// Values of one head in the same form: a token of small ones gets a small
// scale, as attention often looks at it.
bool QuantizeValues(const float* values, const LayerGeometry& layer,
                    uint32_t head, uint32_t first, float step,
                    Section* section) {
  const uint32_t dim = layer.DimOf(false);
  std::array<float, kBlockTokens> energy{};
  for (uint32_t c = 0; c < dim; ++c) {
    const float* row = values + size_t{c} * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t) energy[t] += row[t] * row[t];
  }
  float logs = 0, count = 0;
  std::array<float, kBlockTokens> spread_log{};
  for (uint32_t t = first; t < kBlockTokens; ++t) {
    if (!(energy[t] > 0)) continue;
    spread_log[t] = std::log2(energy[t] / dim) / 2;
    logs += spread_log[t];
    ++count;
  }
  const float usual_log = count > 0 ? logs / count : 0;
  section->value_step[head] = count > 0 ? step * std::exp2(usual_log) : 0;
  if (!(section->value_step[head] <= kScaleMax) ||
      (section->value_step[head] == 0 && count > 0))
    return false;
  std::array<float, kBlockTokens> scales{};
  for (uint32_t t = first; t < kBlockTokens; ++t) {
    const float quarters =
        energy[t] > 0 ? std::nearbyintf(4 * (spread_log[t] - usual_log)) : 0;
    section->exponent[t * layer.kv_heads + head] =
        static_cast<uint8_t>(std::clamp(quarters, -8.0f, 7.0f) + kNibbleZero);
    scales[t] = section->ValueScale(t, head);
  }
  bool held = true;
  for (uint32_t c = 0; c < dim; ++c) {
    const size_t row = size_t{layer.ChannelsOf(true)} + size_t{head} * dim + c;
    held &= Take(values + size_t{c} * kBlockTokens, scales.data(), 0, first,
                 row, section);
  }
  return held;
}

// The nearest classes of `rows` within the 16 from `*lowest` on, which is set
// so that the largest fits.
void ChooseClasses(absl::Span<const int16_t> rows,
                   absl::Span<uint8_t> class_of_row, uint8_t* lowest) {
  uint8_t largest = 0;
  for (size_t r = 0; r < class_of_row.size(); ++r) {
    int32_t sum = 0;
    for (uint32_t t = 0; t < kBlockTokens; ++t)
      sum += std::abs(int32_t{rows[r * kBlockTokens + t]});
    class_of_row[r] = static_cast<uint8_t>(
        LatentClass(static_cast<float>(sum) / kBlockTokens, 1));
    largest = std::max(largest, class_of_row[r]);
  }
  *lowest = largest > 15 ? largest - 15 : 0;
  for (uint8_t& one : class_of_row) one = std::max(one, *lowest);
}

// Both for an even number of them.
void PutNibbles(absl::Span<const uint8_t> values, ByteWriter* writer) {
  for (size_t i = 0; i < values.size(); i += 2)
    writer->Put(static_cast<uint8_t>(values[i] | values[i + 1] << 4));
}

void GetNibbles(ByteSpan bytes, absl::Span<uint8_t> values) {
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = bytes[i / 2] >> (4 * (i % 2)) & 15;
}

bool ScalesInBounds(const std::vector<float>& scales) {
  return std::all_of(scales.begin(), scales.end(), [](float scale) {
    return scale >= 0 && scale <= kScaleMax;
  });
}

}  // namespace

float ScalarLoss(float step) { return kLossOfStep * step * step; }

absl::StatusOr<Bytes> ScalarCodec::Encode(uint32_t l, uint32_t first_token,
                                          ByteSpan raw, float step) const {
  const LayerGeometry& layer = geometry_.layers[l];
  const uint32_t first = SinkTokens(first_token);
  std::vector<float> values(size_t{layer.Channels()} * kBlockTokens);
  ToFloat(layer.dtype, raw.data(), values.size(), values.data());
  if (!std::all_of(values.begin(), values.end(),
                   [](float value) { return std::isfinite(value); })) {
    return absl::OutOfRangeError("values that are not finite");
  }
  Unrotate(layer, *rotary_tables_->Get(l, first_token), values.data(),
           layer.ChannelsOf(true));
  // [channels][kBlockTokens], as rows are.
  std::vector<float> turned(values.size());
  for (const bool keys : {true, false}) {
    const size_t part = FirstRow(layer, keys) * kBlockTokens;
    const uint32_t channels = layer.ChannelsOf(keys);
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const float* token = values.data() + part + size_t{t} * channels;
      for (uint32_t c = 0; c < channels; ++c)
        turned[part + size_t{c} * kBlockTokens + t] = token[c];
    }
  }
  Section section(layer);
  const auto head = [&](bool keys, uint32_t h) {
    return turned.data() +
           (FirstRow(layer, keys) + size_t{h} * layer.DimOf(keys)) *
               kBlockTokens;
  };
  for (uint32_t h = 0; h < layer.kv_heads; ++h) {
    if (!QuantizeKeys(head(true, h), layer, h, first, step, &section) ||
        !QuantizeValues(head(false, h), layer, h, first, step, &section)) {
      return absl::OutOfRangeError("values too far apart");
    }
  }
  // Rotation turns two values of a key into one.
  if (layer.dtype == DType::kFp16 &&
      section.largest * 1.5f * std::max(1.0f, layer.rotary_scale) >= kFp16Max) {
    return absl::OutOfRangeError("values that could pass what fp16 holds");
  }
  std::array<uint8_t, 2> lowest{};  // Of keys, and of values.
  for (const bool keys : {true, false}) {
    const size_t row = FirstRow(layer, keys);
    const uint32_t channels = layer.ChannelsOf(keys);
    ChooseClasses(
        absl::MakeConstSpan(section.rows)
            .subspan(row * kBlockTokens, size_t{channels} * kBlockTokens),
        absl::MakeSpan(section.class_of_row).subspan(row, channels),
        &lowest[keys ? 0 : 1]);
  }
  absl::StatusOr<CodedLatents> coded =
      EncodeLatents(latent_tables_, section.class_of_row, section.rows);
  if (!coded.ok()) return coded.status();
  Bytes payload;
  ByteWriter writer(&payload);
  writer.Put<uint32_t>(coded->escapes.size());
  for (uint8_t one : lowest) writer.Put(one);
  for (float scale : section.key_step) writer.Put(scale);
  for (float scale : section.value_step) writer.Put(scale);
  for (int8_t mean : section.mean) writer.Put(mean);
  for (uint32_t r = 0; r < layer.Channels(); ++r)
    section.class_of_row[r] -= lowest[r < layer.ChannelsOf(true) ? 0 : 1];
  PutNibbles(section.class_of_row, &writer);
  PutNibbles(section.exponent, &writer);
  if (first > 0) writer.PutBytes(WriteSinks(geometry_, l, l + 1, raw));
  PutEscapes(coded->escapes, &writer);
  writer.PutBytes(coded->bytes);
  return payload;
}

absl::Status ScalarCodec::Decode(uint32_t l, uint32_t first_token,
                                 ByteSpan payload,
                                 absl::Span<uint8_t> raw) const {
  const LayerGeometry& layer = geometry_.layers[l];
  const uint32_t first = SinkTokens(first_token);
  Section section(layer);
  ByteReader reader(payload);
  const uint32_t escape_count = reader.Get<uint32_t>();
  const std::array<uint8_t, 2> lowest = {reader.Get<uint8_t>(),
                                         reader.Get<uint8_t>()};
  for (float& scale : section.key_step) scale = reader.Get<float>();
  for (float& scale : section.value_step) scale = reader.Get<float>();
  for (int8_t& mean : section.mean) mean = reader.Get<int8_t>();
  const ByteSpan classes = reader.GetBytes(layer.Channels() / 2);
  const ByteSpan exponents = reader.GetBytes(section.exponent.size() / 2);
  const ByteSpan sinks =
      reader.GetBytes(first > 0 ? SinkBytes(geometry_, l, l + 1) : 0);
  if (!reader.ok() || escape_count > section.rows.size())
    return absl::DataLossError("a section ends early");
  const ByteSpan escapes = reader.GetBytes(escape_count * kEscapeBytes);
  if (!reader.ok()) return absl::DataLossError("a section ends early");
  if (std::max(lowest[0], lowest[1]) + 15u >= kLatentClasses ||
      !ScalesInBounds(section.key_step) ||
      !ScalesInBounds(section.value_step)) {
    return absl::DataLossError(
        "a section's classes or scales are out of bounds");
  }
  GetNibbles(classes, absl::MakeSpan(section.class_of_row));
  for (uint32_t r = 0; r < layer.Channels(); ++r)
    section.class_of_row[r] += lowest[r < layer.ChannelsOf(true) ? 0 : 1];
  GetNibbles(exponents, absl::MakeSpan(section.exponent));
  std::vector<uint8_t> symbols(section.rows.size());
  absl::Status status =
      DecodeLatents(latent_tables_, section.class_of_row,
                    payload.subspan(reader.offset()), absl::MakeSpan(symbols));
  if (!status.ok()) return status;
  for (size_t i = 0; i < symbols.size(); ++i) {
    section.rows[i] =
        symbols[i] == kEscapeSymbol ? 0 : (symbols[i] >> 1) ^ -(symbols[i] & 1);
  }
  status = TakeEscapes(symbols, escapes, [&](uint32_t place, int16_t latent) {
    section.rows[place] = latent;
  });
  if (!status.ok()) return status;
  std::vector<float> values(section.rows.size());
  for (const bool keys : {true, false}) {
    const size_t part = FirstRow(layer, keys) * kBlockTokens;
    const uint32_t channels = layer.ChannelsOf(keys);
    for (uint32_t c = 0; c < channels; ++c) {
      const uint32_t head = c / layer.DimOf(keys);
      const int16_t* row =
          section.rows.data() + part + size_t{c} * kBlockTokens;
      float* to = values.data() + part + c;
      for (uint32_t t = 0; t < kBlockTokens; ++t) {
        to[size_t{t} * channels] =
            keys ? static_cast<float>(row[t] + section.mean[c]) *
                       section.key_step[head]
                 : static_cast<float>(row[t]) * section.ValueScale(t, head);
      }
    }
  }
  Rotate(layer, *rotary_tables_->Get(l, first_token), values.data(),
         layer.ChannelsOf(true));
  FromFloat(layer.dtype, values.data(), values.size(), raw.data());
  if (first > 0) ReadSinks(geometry_, l, l + 1, sinks, raw);
  return absl::OkStatus();
}

}  // namespace latentkv
