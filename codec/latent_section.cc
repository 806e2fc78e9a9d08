#include "codec/latent_section.h"

#include <algorithm>
#include <cstdlib>

#include "codec/escapes.h"
#include "codec/latent_model.h"
#include "core/limits.h"
#include "kernels/entropy.h"
#include "kernels/latents.h"

namespace latentkv {
namespace {

constexpr uint8_t kStoredSinksFlag = 1, kBasisSinksFlag = 2, kPredictedFlag = 4;

std::vector<uint8_t> Classes(const BasisGroup& group, float step,
                             uint32_t rank) {
  std::vector<uint8_t> classes(rank);
  for (uint32_t r = 0; r < rank; ++r)
    classes[r] = static_cast<uint8_t>(LatentClass(group.latent_scale[r], step));
  return classes;
}

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
    // One more is as bad as any larger, and keeps the sum in int32.
    const int32_t magnitude =
        std::min(std::abs(int32_t{latent}), kLatentMagnitudeMax + 1);
    sum += magnitude;
    largest = std::max(largest, magnitude);
  }
  return largest <= kLatentMagnitudeMax && sum < kLatentSumMax;
}

absl::StatusOr<Bytes> WriteLatentSection(const BasisGroup& group,
                                         const LatentTables& tables, float step,
                                         const LatentSection& section) {
  const uint32_t rank = UsedRank(section.latents, group.rank);
  std::vector<int16_t> rows(size_t{rank} * kBlockTokens);
  RowsFromLatents(section.latents, kBlockTokens, group.rank, rank,
                  absl::MakeSpan(rows));
  absl::StatusOr<CodedLatents> coded =
      EncodeLatents(tables, Classes(group, step, rank), rows);
  if (!coded.ok()) return coded.status();

  Bytes payload;
  ByteWriter writer(&payload);
  writer.Put<uint16_t>(rank);
  writer.Put<uint8_t>(static_cast<uint8_t>(section.sink_source) |
                      (section.predicted ? kPredictedFlag : 0));
  writer.Put<uint8_t>(section.exact_tokens.size());
  writer.Put<uint32_t>(coded->escapes.size());
  writer.PutBytes(section.exact_tokens);
  writer.PutBytes(section.exact_values);
  writer.PutBytes(section.sinks);
  PutEscapes(coded->escapes, &writer);
  writer.PutBytes(coded->bytes);
  return payload;
}

CodedSize CodedSizeOf(const SectionShape& shape, ByteSpan payload) {
  ByteReader reader(payload);
  reader.Get<uint16_t>();
  const bool stored_sinks = (reader.Get<uint8_t>() & kStoredSinksFlag) != 0;
  const uint32_t exact_count = reader.Get<uint8_t>();
  const uint64_t escape_bytes = uint64_t{reader.Get<uint32_t>()} * kEscapeBytes;
  const uint64_t others = reader.offset() +
                          exact_count * (1 + shape.exact_token_bytes) +
                          (stored_sinks ? shape.sink_bytes : 0) + escape_bytes +
                          kEntropyLanes * sizeof(uint32_t);
  const uint32_t apart = exact_count + (shape.sink_bytes > 0 ? kSinkTokens : 0);
  return {kBlockTokens - std::min(kBlockTokens, apart),
          payload.size() - std::min<uint64_t>(payload.size(), others)};
}

absl::StatusOr<LatentSection> ReadLatentSection(const BasisGroup& group,
                                                const LatentTables& tables,
                                                float step,
                                                const SectionShape& shape,
                                                ByteSpan payload) {
  ByteReader reader(payload);
  const uint32_t rank = reader.Get<uint16_t>();
  const uint8_t flags = reader.Get<uint8_t>();
  const uint32_t exact_count = reader.Get<uint8_t>();
  const uint32_t escape_count = reader.Get<uint32_t>();
  const uint8_t sink_flags = flags & (kStoredSinksFlag | kBasisSinksFlag);
  const bool sinks_fit =
      shape.sink_bytes == 0
          ? sink_flags == 0
          : sink_flags == kStoredSinksFlag || sink_flags == kBasisSinksFlag;
  if (!reader.ok() || rank > group.rank ||
      (flags & ~(sink_flags | kPredictedFlag)) != 0 || !sinks_fit ||
      exact_count > kBlockTokens || escape_count > rank * kBlockTokens) {
    return absl::DataLossError("a section's first bytes are out of bounds");
  }
  LatentSection section;
  section.predicted = (flags & kPredictedFlag) != 0;
  section.sink_source = static_cast<SinkSource>(sink_flags);
  const ByteSpan tokens = reader.GetBytes(exact_count);
  const ByteSpan exact = reader.GetBytes(exact_count * shape.exact_token_bytes);
  const ByteSpan sinks = reader.GetBytes(
      section.sink_source == SinkSource::kStored ? shape.sink_bytes : 0);
  const ByteSpan escapes = reader.GetBytes(escape_count * kEscapeBytes);
  if (!reader.ok()) return absl::DataLossError("a section ends early");
  section.exact_tokens.assign(tokens.begin(), tokens.end());
  section.exact_values.assign(exact.begin(), exact.end());
  section.sinks.assign(sinks.begin(), sinks.end());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= kBlockTokens || (i > 0 && tokens[i] <= tokens[i - 1])) {
      return absl::DataLossError("a section's exact tokens are out of order");
    }
  }
  std::vector<uint8_t> symbols(size_t{rank} * kBlockTokens);
  absl::Status decoded =
      DecodeLatents(tables, Classes(group, step, rank),
                    payload.subspan(reader.offset()), absl::MakeSpan(symbols));
  if (!decoded.ok()) return decoded;
  section.latents.resize(size_t{group.rank} * kBlockTokens);
  LatentsFromSymbols(symbols, kBlockTokens, group.rank, rank,
                     absl::MakeSpan(section.latents));
  absl::Status fit =
      TakeEscapes(symbols, escapes, [&](uint32_t place, int16_t latent) {
        section.latents[size_t{place % kBlockTokens} * group.rank +
                        place / kBlockTokens] = latent;
      });
  if (!fit.ok()) return fit;
  return section;
}

}  // namespace latentkv
