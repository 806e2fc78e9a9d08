// A second decoder of a basis frame's sections, with every backend: one after
// the other of the steps that docs/formats/payload.md names, on plain loops
// where kernels/ has no step for it.
#include <gtest/gtest.h>

#include <algorithm>

#include "codec/latent_model.h"
#include "core/limits.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"
#include "kernels/reconstruct.h"
#include "kernels/rotary.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

class SecondDecoder {
 public:
  SecondDecoder(const Basis& basis, float step, const BlockPlace& place,
                Backend backend)
      : basis_(basis), step_(step), place_(place), backend_(backend) {}

  // The raw form of the next group's layers.
  Bytes Decode(ByteSpan payload) {
    const BasisGroup& group = basis_.groups()[group_];
    ByteReader reader(payload);
    const uint32_t rank = reader.Get<uint16_t>(), flags = reader.Get<uint8_t>(),
                   exact = reader.Get<uint8_t>();
    const uint32_t escapes = reader.Get<uint32_t>();
    const uint32_t token_bytes = TokenBytes(group);
    const ByteSpan exact_tokens = reader.GetBytes(exact),
                   exact_values = reader.GetBytes(exact * token_bytes);
    ByteSpan sinks = reader.GetBytes(flags & 1 ? SinkBytesOf(group) : 0);
    ByteReader escaped(reader.GetBytes(escapes * 6));
    std::vector<int16_t> own =
        OwnLatents(group, rank, payload.subspan(reader.offset()));
    for (uint32_t e = 0; e < escapes; ++e) {
      const uint32_t place = escaped.Get<uint32_t>();
      own[place % kBlockTokens * group.rank + place / kBlockTokens] =
          escaped.Get<int16_t>();
    }
    const bool predicted = (flags & 4) != 0;
    std::vector<float> values = Values(group, predicted, own);
    Bytes raw = ToRaw(group, &values);
    if (flags & 2) sinks = KnownSinksOf(group);
    if (flags & 3) PutSinks(group, sinks, &raw);
    for (uint32_t i = 0; i < exact; ++i)
      PutToken(group, exact_tokens[i], exact_values.subspan(i * token_bytes),
               &raw);
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      inherited_[t].insert(
          inherited_[t].end(), own.begin() + t * group.rank,
          own.begin() + t * group.rank + basis_.inherited_rank());
    }
    ++group_;
    return raw;
  }

 private:
  uint32_t TokenBytes(const BasisGroup& group) const {
    return group.channels * DTypeBytes(basis_.geometry().layers[0].dtype);
  }
  // A scale for each head of 16 values.
  uint32_t SinkBytesOf(const BasisGroup& group) const {
    return kSinkTokens * group.channels / 16 * (4 + 16);
  }
  ByteSpan KnownSinksOf(const BasisGroup& group) const {
    return ByteSpan(basis_.sinks()[0].values)
        .subspan(group_ * SinkBytesOf(group), SinkBytesOf(group));
  }

  std::vector<int16_t> OwnLatents(const BasisGroup& group, uint32_t rank,
                                  ByteSpan coded) const {
    static const LatentTables tables = MakeLatentTables();
    std::vector<uint8_t> classes, symbols(rank * kBlockTokens);
    for (uint32_t r = 0; r < rank; ++r)
      classes.push_back(LatentClass(group.latent_scale[r], step_));
    EXPECT_TRUE(
        DecodeLatents(tables, classes, coded, absl::MakeSpan(symbols), backend_)
            .ok());
    std::vector<int16_t> latents(kBlockTokens * group.rank);
    for (uint32_t i = 0; i < symbols.size(); ++i) {
      const int symbol = symbols[i];
      if (symbol == kEscapeSymbol) continue;
      latents[i % kBlockTokens * group.rank + i / kBlockTokens] =
          symbol % 2 ? -(symbol + 1) / 2 : symbol / 2;
    }
    return latents;
  }

  std::vector<float> Values(const BasisGroup& group, bool predicted,
                            const std::vector<int16_t>& own) const {
    std::vector<float> values;
    for (uint32_t t = 0; t < kBlockTokens; ++t)
      values.insert(values.end(), group.mean.begin(), group.mean.end());
    const Embedding& embedding = basis_.embedding();
    if (predicted && embedding.Features() > 0) {
      std::vector<int16_t> features;
      for (uint32_t t = place_.first_token;
           t < place_.first_token + kBlockTokens; ++t) {
        for (uint32_t back = 0; back < embedding.history; ++back) {
          const uint32_t token =
              back <= t ? place_.tokens[t - back] : embedding.vocabulary;
          for (uint32_t d = 0; d < embedding.dims; ++d) {
            features.push_back(token < embedding.vocabulary
                                   ? embedding.rows[token * embedding.dims + d]
                                   : 0);
          }
        }
      }
      Restore(
          PackDecoder(group.feature_rows, embedding.Features(), group.channels),
          features, embedding.Features(), kBlockTokens, group.feature_scale, 1,
          group.mean, absl::MakeSpan(values), backend_);
    }
    const uint32_t stride = group.rank + group_ * basis_.inherited_rank();
    std::vector<int16_t> latents(kBlockTokens * stride);
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      std::copy_n(own.begin() + t * group.rank, group.rank,
                  latents.begin() + t * stride);
      if (predicted)
        std::copy(inherited_[t].begin(), inherited_[t].end(),
                  latents.begin() + t * stride + group.rank);
    }
    Restore(PackDecoder(group.decoder, stride, group.channels), latents, stride,
            kBlockTokens, group.row_scale, step_, values,
            absl::MakeSpan(values), backend_);
    return values;
  }

  Bytes ToRaw(const BasisGroup& group, std::vector<float>* values) const {
    Bytes raw(TokenBytes(group) * kBlockTokens);
    uint8_t* next = raw.data();
    uint32_t channel = 0;
    for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
      const LayerGeometry& layer = basis_.geometry().layers[l];
      Rotate(layer, MakeRotaryTable(layer, place_.first_token, kBlockTokens),
             values->data() + channel, group.channels, backend_);
      for (const bool keys : {true, false}) {
        const uint32_t width = layer.ChannelsOf(keys);
        for (uint32_t t = 0; t < kBlockTokens;
             ++t, next += width * DTypeBytes(layer.dtype)) {
          FromFloat(layer.dtype, values->data() + t * group.channels + channel,
                    width, next, backend_);
        }
        channel += width;
      }
    }
    return raw;
  }

  void PutSinks(const BasisGroup& group, ByteSpan sinks, Bytes* raw) const {
    ByteReader reader(sinks);
    const DType dtype = basis_.geometry().layers[0].dtype;
    const uint32_t row_bytes = 32 * DTypeBytes(dtype),
                   parts = group.channels / 32;
    for (uint32_t part = 0; part < parts; ++part) {
      for (uint32_t head = 0; head < 2 * kSinkTokens; ++head) {
        const float scale = reader.Get<float>();
        for (uint32_t d = 0; d < 16; ++d) {
          const float value = scale * reader.Get<int8_t>();
          FromFloat(dtype, &value, 1,
                    raw->data() + part * kBlockTokens * row_bytes +
                        (head * 16 + d) * DTypeBytes(dtype),
                    backend_);
        }
      }
    }
  }

  void PutToken(const BasisGroup& group, uint32_t token, ByteSpan values,
                Bytes* raw) const {
    const uint32_t parts = group.channels / 32,
                   row_bytes = TokenBytes(group) / parts;
    for (uint32_t part = 0; part < parts; ++part) {
      std::copy_n(values.begin() + part * row_bytes, row_bytes,
                  raw->begin() + (part * kBlockTokens + token) * row_bytes);
    }
  }

  const Basis& basis_;
  const float step_;
  const BlockPlace place_;
  const Backend backend_;
  uint32_t group_ = 0;
  std::vector<int16_t> inherited_[kBlockTokens];
};

TEST(Backends, RestoreTheSameBitsAsTheCodec) {
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    const SyntheticModel model({dtype});
    const std::vector<uint32_t> tokens = model.Tokens(2 * kBlockTokens);
    for (uint32_t first_token : {0, 64}) {
      Bytes raw = model.Block(tokens, first_token);
      // Not the sinks that the basis knows.
      std::fill_n(raw.begin(), 16 * DTypeBytes(dtype), 0);
      // Token 50 of every part, large.
      const uint32_t row_bytes = 32 * DTypeBytes(dtype);
      for (size_t at = 50 * row_bytes; at < raw.size();
           at += kBlockTokens * row_bytes) {
        for (uint32_t i = DTypeBytes(dtype) - 1; i < row_bytes;
             i += DTypeBytes(dtype))
          raw[at + i] = 0x6b;
      }
      for (float step : {0.5f, 1.0f, 4.0f}) {
        EncodeOptions options;
        options.exact = false;
        options.step = step;
        const BlockPlace place = PlaceOf(tokens, first_token);
        const Bytes frame = *model.codec().Encode(place, raw, options);
        ASSERT_FALSE(VerifyFrame(frame)->encoding.IsExact());
        ASSERT_FALSE(ReadSection(model, frame, 0).exact_tokens.empty());
        const Bytes restored = Restored(model.codec(), frame, place);
        for (Backend backend : AvailableBackends()) {
          SecondDecoder decoder(*model.basis(), step, place, backend);
          Bytes second;
          for (const Bytes& section : SectionsOf(frame)) {
            const Bytes group = decoder.Decode(section);
            second.insert(second.end(), group.begin(), group.end());
          }
          ASSERT_EQ(second, restored) << BackendName(backend) << " at " << step;
        }
      }
    }
  }
}

}  // namespace
}  // namespace latentkv
