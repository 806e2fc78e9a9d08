#include "codec/exact_section.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/limits.h"
#include "kernels/entropy.h"
#include "kernels/planes.h"

namespace latentkv {
namespace {

enum class Form : uint8_t { kPlain = 0, kCoded = 1 };

// Channels are sorted by how many bits their symbols need, and those that need alike share a table: more tables fit
// better and cost 2 bytes a symbol each.
constexpr uint32_t kTables = 4;

using Counts = std::array<uint64_t, 256>;

// The layer's first planes as rows of one channel each, K's then V's, and each row's largest byte.
struct Rows {
  uint32_t count = 0;
  std::vector<uint8_t> largest;  // [count]
  std::vector<uint8_t> symbols;  // [count][kBlockTokens]: the largest byte less the byte.
};

Rows MakeRows(const uint8_t* planes, uint32_t count) {
  Rows rows{count, std::vector<uint8_t>(count), std::vector<uint8_t>(size_t{count} * kBlockTokens)};
  for (uint32_t r = 0; r < count; ++r) {
    const uint8_t* row = planes + size_t{r} * kBlockTokens;
    rows.largest[r] = *std::max_element(row, row + kBlockTokens);
    for (uint32_t t = 0; t < kBlockTokens; ++t) rows.symbols[size_t{r} * kBlockTokens + t] = rows.largest[r] - row[t];
  }
  return rows;
}

// Which table each row uses: quarters of the rows by their symbols' entropy.
std::vector<uint16_t> AssignTables(const Rows& rows) {
  std::vector<float> bits(rows.count);
  for (uint32_t r = 0; r < rows.count; ++r) {
    std::array<uint8_t, 256> counts{};
    for (uint32_t t = 0; t < kBlockTokens; ++t) ++counts[rows.symbols[size_t{r} * kBlockTokens + t]];
    for (uint32_t count : counts) {
      if (count > 1) bits[r] -= count * std::log2(static_cast<float>(count));
    }
  }
  std::vector<uint32_t> order(rows.count);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return bits[a] < bits[b]; });
  std::vector<uint16_t> table_of_row(rows.count);
  for (uint32_t i = 0; i < rows.count; ++i) table_of_row[order[i]] = uint64_t{i} * kTables / rows.count;
  return table_of_row;
}

struct TableSet {
  std::vector<EntropyTable> tables;
  std::vector<const EntropyTable*> pointers;
  void Add(EntropyTable table) { tables.push_back(std::move(table)); }
  absl::Span<const EntropyTable* const> Pointers() {
    pointers.clear();
    for (const EntropyTable& table : tables) pointers.push_back(&table);
    return pointers;
  }
};

// A table's frequencies: how many symbols, then each. Up to the last that occurs.
void PutTable(const EntropyTable& table, ByteWriter* writer) {
  uint32_t symbols = 256;
  while (symbols > 1 && table.frequency[symbols - 1] == 0) --symbols;
  writer->Put<uint8_t>(symbols - 1);
  for (uint32_t s = 0; s < symbols; ++s) writer->Put(table.frequency[s]);
}

absl::StatusOr<EntropyTable> GetTable(ByteReader* reader) {
  std::array<uint16_t, 256> frequency{};
  const uint32_t symbols = reader->Get<uint8_t>() + 1u;
  for (uint32_t s = 0; s < symbols; ++s) frequency[s] = reader->Get<uint16_t>();
  if (!reader->ok()) return absl::DataLossError("an exact section's tables end early");
  absl::StatusOr<EntropyTable> table = MakeEntropyTable(frequency);
  if (!table.ok()) return absl::DataLossError(table.status().message());
  return table;
}

Bytes Plain(ByteSpan raw) {
  Bytes payload{static_cast<uint8_t>(Form::kPlain)};
  payload.insert(payload.end(), raw.begin(), raw.end());
  return payload;
}

}  // namespace

absl::StatusOr<Bytes> WriteExactSection(const LayerGeometry& layer, ByteSpan raw) {
  const uint32_t channels = layer.KvChannels(), element = DTypeBytes(layer.dtype);
  const size_t plane_bytes = size_t{channels} * kBlockTokens;
  // K's and V's first planes side by side, then K's others, then V's.
  Bytes first(2 * plane_bytes), rest(2 * plane_bytes * (element - 1)), planes(plane_bytes * element);
  for (int part = 0; part < 2; ++part) {
    SplitPlanes(raw.data() + part * planes.size(), kBlockTokens, channels, element, planes.data());
    std::memcpy(first.data() + part * plane_bytes, planes.data(), plane_bytes);
    std::copy(planes.begin() + plane_bytes, planes.end(), rest.begin() + part * plane_bytes * (element - 1));
  }
  const Rows rows = MakeRows(first.data(), 2 * channels);
  const std::vector<uint16_t> table_of_row = AssignTables(rows);
  std::array<Counts, kTables> counts{};
  for (size_t i = 0; i < rows.symbols.size(); ++i) ++counts[table_of_row[i / kBlockTokens]][rows.symbols[i]];

  Bytes payload{static_cast<uint8_t>(Form::kCoded)};
  ByteWriter writer(&payload);
  TableSet set;
  for (const Counts& count : counts) {
    set.Add(*MakeEntropyTable(NormalizeCounts(count)));
    PutTable(set.tables.back(), &writer);
  }
  writer.PutBytes(rows.largest);
  for (uint32_t r = 0; r < rows.count; r += 4) {
    uint8_t four = 0;
    for (uint32_t i = r; i < std::min(r + 4, rows.count); ++i) four |= table_of_row[i] << (2 * (i - r));
    writer.Put(four);
  }
  writer.PutBytes(rest);
  absl::StatusOr<Bytes> coded = EncodeSymbols({rows.count, kBlockTokens, table_of_row, set.Pointers()}, rows.symbols);
  if (!coded.ok()) return coded.status();
  writer.PutBytes(*coded);
  return payload.size() <= raw.size() ? payload : Plain(raw);
}

absl::Status ReadExactSection(const LayerGeometry& layer, ByteSpan payload, absl::Span<uint8_t> raw) {
  ByteReader reader(payload);
  const uint8_t form = reader.Get<uint8_t>();
  if (reader.ok() && form == static_cast<uint8_t>(Form::kPlain) && reader.remaining() == raw.size()) {
    const ByteSpan values = reader.GetBytes(raw.size());
    std::copy(values.begin(), values.end(), raw.begin());
    return absl::OkStatus();
  }
  if (!reader.ok() || form != static_cast<uint8_t>(Form::kCoded)) {
    return absl::DataLossError("an exact section of an unknown form or the wrong length");
  }
  TableSet set;
  for (uint32_t i = 0; i < kTables; ++i) {
    absl::StatusOr<EntropyTable> table = GetTable(&reader);
    if (!table.ok()) return table.status();
    set.Add(*std::move(table));
  }
  const uint32_t channels = layer.KvChannels(), element = DTypeBytes(layer.dtype), rows = 2 * channels;
  const size_t plane_bytes = size_t{channels} * kBlockTokens;
  const ByteSpan largest = reader.GetBytes(rows);
  const ByteSpan packed = reader.GetBytes((rows + 3) / 4);
  const ByteSpan rest = reader.GetBytes(2 * plane_bytes * (element - 1));
  if (!reader.ok()) return absl::DataLossError("an exact section ends early");
  std::vector<uint16_t> table_of_row(rows);
  for (uint32_t r = 0; r < rows; ++r) table_of_row[r] = packed[r / 4] >> (2 * (r % 4)) & 3;
  std::vector<uint8_t> symbols(2 * plane_bytes);
  absl::Status status = DecodeSymbols({rows, kBlockTokens, table_of_row, set.Pointers()},
                                      payload.subspan(reader.offset()), absl::MakeSpan(symbols));
  if (!status.ok()) return status;
  for (uint32_t r = 0; r < rows; ++r) {
    uint8_t* row = symbols.data() + size_t{r} * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t) row[t] = largest[r] - row[t];
  }
  for (int part = 0; part < 2; ++part) {
    MergePlanes(symbols.data() + part * plane_bytes, rest.data() + part * plane_bytes * (element - 1), kBlockTokens,
                channels, element, raw.data() + part * plane_bytes * element);
  }
  return absl::OkStatus();
}

}  // namespace latentkv
