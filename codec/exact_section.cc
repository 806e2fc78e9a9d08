#include "codec/exact_section.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "core/limits.h"
#include "kernels/entropy.h"
#include "kernels/planes.h"

namespace latentkv {
namespace {

enum class Form : uint8_t { kPlain = 0, kCoded = 1 };

// Channels are sorted by how their symbols spread, and those that spread alike
// share a table: more tables fit better and cost 2 bytes a symbol each.
constexpr uint32_t kTables = 4;

// The layer's first planes as rows of one channel each, K's then V's, and each
// row's largest byte.
struct Rows {
  uint32_t count = 0;
  std::vector<uint8_t> largest;  // [count]
  std::vector<uint32_t> sum;     // [count], of its symbols
  // [count][kBlockTokens]: the largest byte less the byte.
  std::unique_ptr<uint8_t[]> symbols;
  absl::Span<const uint8_t> Symbols() const {
    return {symbols.get(), size_t{count} * kBlockTokens};
  }
};

Rows MakeRows(std::unique_ptr<uint8_t[]> planes, uint32_t count) {
  Rows rows{count, std::vector<uint8_t>(count), std::vector<uint32_t>(count),
            std::move(planes)};
  for (uint32_t r = 0; r < count; ++r) {
    uint8_t* row = rows.symbols.get() + size_t{r} * kBlockTokens;
    uint8_t largest = 0;
    for (uint32_t t = 0; t < kBlockTokens; ++t)
      largest = std::max(largest, row[t]);
    uint32_t sum = 0;
    for (uint32_t t = 0; t < kBlockTokens; ++t)
      sum += std::abs(largest - row[t]);
    for (uint32_t t = 0; t < kBlockTokens; ++t) row[t] = largest - row[t];
    rows.largest[r] = largest;
    rows.sum[r] = sum;
  }
  return rows;
}

// Which table each row uses: quarters of the rows by their mean symbol, which
// tells how sharp their distribution is almost as well as its entropy does, and
// much sooner.
std::vector<uint16_t> AssignTables(const Rows& rows) {
  std::vector<uint64_t> order(rows.count);
  for (uint32_t r = 0; r < rows.count; ++r)
    order[r] = uint64_t{rows.sum[r]} << 32 | r;
  // Which quarter is all that matters: three partitions in the place of a sort.
  static_assert(kTables == 4);
  const auto bound = [&](uint32_t k) {
    return order.begin() + (uint64_t{k} * rows.count + kTables - 1) / kTables;
  };
  std::nth_element(order.begin(), bound(2), order.end());
  std::nth_element(order.begin(), bound(1), bound(2));
  std::nth_element(bound(2), bound(3), order.end());
  std::vector<uint16_t> table_of_row(rows.count);
  for (uint32_t i = 0; i < rows.count; ++i) {
    table_of_row[static_cast<uint32_t>(order[i])] =
        uint64_t{i} * kTables / rows.count;
  }
  return table_of_row;
}

using Counts = std::array<uint64_t, 256>;

std::array<Counts, kTables> CountSymbols(
    const Rows& rows, absl::Span<const uint16_t> table_of_row) {
  // Neighbours are often equal: counters apart, so that one addition need not
  // wait for the last.
  constexpr uint32_t kApart = 4;
  std::array<std::array<std::array<uint32_t, 256>, kApart>, kTables> parts{};
  const uint8_t* next = rows.symbols.get();
  for (uint32_t r = 0; r < rows.count; ++r) {
    auto& table = parts[table_of_row[r]];
    for (uint32_t t = 0; t < kBlockTokens; t += kApart, next += kApart) {
      for (uint32_t i = 0; i < kApart; ++i) ++table[i][next[i]];
    }
  }
  std::array<Counts, kTables> counts{};
  for (uint32_t k = 0; k < kTables; ++k) {
    for (const auto& part : parts[k]) {
      for (uint32_t s = 0; s < 256; ++s) counts[k][s] += part[s];
    }
  }
  return counts;
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

// A table's frequencies: how many symbols, then each. Up to the last that
// occurs.
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
  if (!reader->ok())
    return absl::DataLossError("an exact section's tables end early");
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

absl::StatusOr<Bytes> WriteExactSection(const LayerGeometry& layer,
                                        ByteSpan raw) {
  const uint32_t channels = layer.Channels(), element = DTypeBytes(layer.dtype);
  const size_t plane_bytes = size_t{channels} * kBlockTokens,
               rest_bytes = plane_bytes * (element - 1);
  // K's and V's first planes side by side, then K's others, then V's.
  auto first = std::make_unique_for_overwrite<uint8_t[]>(plane_bytes);
  const auto rest = std::make_unique_for_overwrite<uint8_t[]>(rest_bytes);
  size_t at = 0;  // In a plane.
  for (const bool keys : {true, false}) {
    SplitPlanes(raw.data() + at * element, kBlockTokens, layer.ChannelsOf(keys),
                element, first.get() + at, rest.get() + at * (element - 1));
    at += size_t{layer.ChannelsOf(keys)} * kBlockTokens;
  }
  const Rows rows = MakeRows(std::move(first), channels);
  const std::vector<uint16_t> table_of_row = AssignTables(rows);

  Bytes payload{static_cast<uint8_t>(Form::kCoded)};
  payload.reserve(raw.size());
  ByteWriter writer(&payload);
  TableSet set;
  for (const Counts& counts : CountSymbols(rows, table_of_row)) {
    set.Add(*MakeEntropyTable(NormalizeCounts(counts)));
    PutTable(set.tables.back(), &writer);
  }
  writer.PutBytes(rows.largest);
  for (uint32_t r = 0; r < rows.count; r += 4) {
    uint8_t four = 0;
    for (uint32_t i = r; i < std::min(r + 4, rows.count); ++i)
      four |= table_of_row[i] << (2 * (i - r));
    writer.Put(four);
  }
  writer.PutBytes({rest.get(), rest_bytes});
  absl::StatusOr<Bytes> coded = EncodeSymbols(
      {rows.count, kBlockTokens, table_of_row, set.Pointers()}, rows.Symbols());
  if (!coded.ok()) return coded.status();
  writer.PutBytes(*coded);
  return payload.size() <= raw.size() ? payload : Plain(raw);
}

absl::Status ReadExactSection(const LayerGeometry& layer, ByteSpan payload,
                              absl::Span<uint8_t> raw) {
  ByteReader reader(payload);
  const uint8_t form = reader.Get<uint8_t>();
  if (reader.ok() && form == static_cast<uint8_t>(Form::kPlain) &&
      reader.remaining() == raw.size()) {
    const ByteSpan values = reader.GetBytes(raw.size());
    std::copy(values.begin(), values.end(), raw.begin());
    return absl::OkStatus();
  }
  if (!reader.ok() || form != static_cast<uint8_t>(Form::kCoded)) {
    return absl::DataLossError(
        "an exact section of an unknown form or the wrong length");
  }
  TableSet set;
  for (uint32_t i = 0; i < kTables; ++i) {
    absl::StatusOr<EntropyTable> table = GetTable(&reader);
    if (!table.ok()) return table.status();
    set.Add(*std::move(table));
  }
  const uint32_t rows = layer.Channels(), element = DTypeBytes(layer.dtype);
  const size_t plane_bytes = size_t{rows} * kBlockTokens;
  const ByteSpan largest = reader.GetBytes(rows);
  const ByteSpan packed = reader.GetBytes((rows + 3) / 4);
  const ByteSpan rest = reader.GetBytes(plane_bytes * (element - 1));
  if (!reader.ok()) return absl::DataLossError("an exact section ends early");
  std::vector<uint16_t> table_of_row(rows);
  for (uint32_t r = 0; r < rows; ++r)
    table_of_row[r] = packed[r / 4] >> (2 * (r % 4)) & 3;
  std::vector<uint8_t> symbols(plane_bytes);
  absl::Status status =
      DecodeSymbols({rows, kBlockTokens, table_of_row, set.Pointers()},
                    payload.subspan(reader.offset()), absl::MakeSpan(symbols));
  if (!status.ok()) return status;
  for (uint32_t r = 0; r < rows; ++r) {
    uint8_t* row = symbols.data() + size_t{r} * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t) row[t] = largest[r] - row[t];
  }
  size_t at = 0;  // In a plane.
  for (const bool keys : {true, false}) {
    MergePlanes(symbols.data() + at, rest.data() + at * (element - 1),
                kBlockTokens, layer.ChannelsOf(keys), element,
                raw.data() + at * element);
    at += size_t{layer.ChannelsOf(keys)} * kBlockTokens;
  }
  return absl::OkStatus();
}

}  // namespace latentkv
