#include "codec/latent_section.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/latents.h"

namespace latentkv {
namespace {

constexpr size_t kEscapeBytes = 6;  // Place u32, latent i16.

// Models and bounds of the first `rank` latents at `step`.
struct Rows {
  Rows(const BasisGroup& group, const LatentModel& model, float step, uint32_t rank) {
    for (uint32_t r = 0; r < rank; ++r) {
      classes.push_back(LatentClass(group.latent_scale[r], step));
      magnitude_max.push_back(model.magnitude_max(classes.back()));
    }
    shape = {rank, kBlockTokens, classes, model.tables()};
  }
  std::vector<uint16_t> classes;
  std::vector<uint8_t> magnitude_max;
  EntropyShape shape;
};

// The rows up to the last one that is not all 0.
uint32_t UsedRank(absl::Span<const int16_t> latents, uint32_t stride) {
  uint32_t used = 0;
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    for (uint32_t r = stride; r > used; --r) {
      if (latents[size_t{t} * stride + r - 1] != 0) {
        used = r;
        break;
      }
    }
  }
  return used;
}

}  // namespace

bool LatentsInBounds(absl::Span<const int16_t> latents) {
  int32_t sum = 0, largest = 0;
  for (int16_t latent : latents) {
    const int32_t magnitude = std::abs(int32_t{latent});
    sum += magnitude;  // At most kRankMax * 32768 < 2^31.
    largest = std::max(largest, magnitude);
  }
  return largest <= kLatentMagnitudeMax && sum < kLatentSumMax;
}

absl::StatusOr<Bytes> WriteLatentSection(const BasisGroup& group, const LatentModel& model, float step,
                                         const LatentSection& section) {
  const uint32_t rank = UsedRank(section.latents, group.rank);
  const Rows rows(group, model, step, rank);
  std::vector<uint8_t> symbols(size_t{rank} * kBlockTokens);
  SymbolsFromLatents(section.latents, kBlockTokens, group.rank, rank, rows.magnitude_max, absl::MakeSpan(symbols));
  absl::StatusOr<Bytes> coded = EncodeSymbols(rows.shape, symbols);
  if (!coded.ok()) return coded.status();

  Bytes payload;
  ByteWriter writer(&payload);
  writer.Put<uint16_t>(rank);
  writer.Put<uint8_t>(section.sinks.empty() ? 0 : 1);
  writer.Put<uint8_t>(section.exact_tokens.size());
  writer.Put<uint32_t>(std::count(symbols.begin(), symbols.end(), kEscapeSymbol));
  writer.PutBytes(section.exact_tokens);
  writer.PutBytes(section.exact_values);
  writer.PutBytes(section.sinks);
  for (uint32_t i = 0; i < symbols.size(); ++i) {
    if (symbols[i] != kEscapeSymbol) continue;
    writer.Put(i);
    writer.Put(section.latents[size_t{i % kBlockTokens} * group.rank + i / kBlockTokens]);
  }
  writer.PutBytes(*coded);
  return payload;
}

absl::StatusOr<LatentSection> ReadLatentSection(const BasisGroup& group, const LatentModel& model, float step,
                                                size_t exact_token_bytes, size_t sink_bytes, ByteSpan payload) {
  ByteReader reader(payload);
  const uint32_t rank = reader.Get<uint16_t>();
  const uint8_t flags = reader.Get<uint8_t>();
  const uint32_t exact_count = reader.Get<uint8_t>();
  const uint32_t escape_count = reader.Get<uint32_t>();
  if (!reader.ok() || rank > group.rank || flags != (sink_bytes > 0 ? 1 : 0) || exact_count > kBlockTokens ||
      escape_count > rank * kBlockTokens) {
    return absl::DataLossError("a section's first bytes are out of bounds");
  }
  LatentSection section;
  const ByteSpan tokens = reader.GetBytes(exact_count);
  section.exact_tokens.assign(tokens.begin(), tokens.end());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= kBlockTokens || (i > 0 && tokens[i] <= tokens[i - 1])) {
      return absl::DataLossError("a section's exact tokens are out of order");
    }
  }
  const ByteSpan exact = reader.GetBytes(exact_count * exact_token_bytes);
  const ByteSpan sinks = reader.GetBytes(sink_bytes);
  ByteReader escapes(reader.GetBytes(escape_count * kEscapeBytes));
  if (!reader.ok()) return absl::DataLossError("a section ends early");
  section.exact_values.assign(exact.begin(), exact.end());
  section.sinks.assign(sinks.begin(), sinks.end());

  const Rows rows(group, model, step, rank);
  std::vector<uint8_t> symbols(size_t{rank} * kBlockTokens);
  absl::Status decoded = DecodeSymbols(rows.shape, payload.subspan(reader.offset()), absl::MakeSpan(symbols));
  if (!decoded.ok()) return decoded;
  section.latents.resize(size_t{group.rank} * kBlockTokens);
  LatentsFromSymbols(symbols, kBlockTokens, group.rank, rank, absl::MakeSpan(section.latents));
  if (std::count(symbols.begin(), symbols.end(), kEscapeSymbol) != escape_count) {
    return absl::DataLossError("a section's escapes are not those of its symbols");
  }
  uint32_t next = 0;
  for (uint32_t e = 0; e < escape_count; ++e) {
    const uint32_t place = escapes.Get<uint32_t>();
    const int16_t latent = escapes.Get<int16_t>();
    if (place < next || place >= symbols.size() || symbols[place] != kEscapeSymbol) {
      return absl::DataLossError("a section's escapes are not those of its symbols");
    }
    section.latents[size_t{place % kBlockTokens} * group.rank + place / kBlockTokens] = latent;
    next = place + 1;
  }
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    if (!LatentsInBounds(absl::MakeSpan(section.latents).subspan(size_t{t} * group.rank, group.rank))) {
      return absl::DataLossError(absl::StrCat("the latents of token ", t, " are out of bounds"));
    }
  }
  return section;
}

}  // namespace latentkv
