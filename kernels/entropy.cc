#include "kernels/entropy.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/entropy_backends.h"
#include "kernels/cpu/rans.h"

namespace latentkv {
namespace {

__extension__ typedef unsigned __int128 Wide;

// `symbols` is the number that the caller holds.
absl::Status CheckShape(const EntropyShape& shape, uint64_t symbols) {
  if (shape.row_symbols % kEntropyLanes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows of ", shape.row_symbols,
                     " symbols, not a multiple of ", kEntropyLanes));
  }
  if (shape.table_of_row.size() != shape.rows)
    return absl::InvalidArgumentError("every row needs one table");
  if (symbols != uint64_t{shape.rows} * shape.row_symbols) {
    return absl::InvalidArgumentError(absl::StrCat(
        symbols, " symbols for ", shape.rows, " rows of ", shape.row_symbols));
  }
  for (uint16_t table : shape.table_of_row) {
    if (table >= shape.tables.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("table ", table, " of ", shape.tables.size()));
    }
  }
  return absl::OkStatus();
}

// The last symbol first, as the decoder meets them.
absl::StatusOr<Bytes> EncodePortable(const EntropyShape& shape,
                                     absl::Span<const uint8_t> symbols) {
  kernels::RansEncoder encoder;
  for (uint32_t row = shape.rows; row-- > 0;) {
    const EntropyTable& table = *shape.tables[shape.table_of_row[row]];
    const uint8_t* in = symbols.data() + size_t{row} * shape.row_symbols;
    for (uint32_t i = shape.row_symbols; i-- > 0;) {
      const uint32_t frequency = table.frequency[in[i]];
      if (frequency == 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "symbol ", in[i], " of row ", row, " has frequency 0"));
      }
      encoder.Put(i % kEntropyLanes, frequency, table.start[in[i]]);
    }
  }
  return encoder.Finish();
}

}  // namespace

absl::StatusOr<EntropyTable> MakeEntropyTable(
    absl::Span<const uint16_t> frequency) {
  uint64_t sum = 0;
  for (uint16_t f : frequency) sum += f;
  if (frequency.size() > 256 || sum != kProbabilityOne) {
    return absl::InvalidArgumentError(
        absl::StrCat(frequency.size(), " frequencies that sum to ", sum,
                     ", not to ", kProbabilityOne));
  }
  EntropyTable table;
  uint32_t start = 0;
  for (uint32_t symbol = 0; symbol < 256; ++symbol) {
    table.frequency[symbol] = symbol < frequency.size() ? frequency[symbol] : 0;
    table.start[symbol] = start;
    start += table.frequency[symbol];
  }
  return table;
}

void MakeSlots(const EntropyTable& table, uint32_t* slots) {
  for (uint32_t symbol = 0; symbol < 256; ++symbol) {
    const uint32_t f = table.frequency[symbol];
    for (uint32_t i = 0; i < f; ++i) *slots++ = symbol | (f - 1) << 8 | i << 20;
  }
}

std::array<uint16_t, 256> NormalizeCounts(absl::Span<const uint64_t> counts) {
  std::array<uint16_t, 256> frequency{};
  size_t symbols = std::min<size_t>(counts.size(), 256);
  while (symbols > 0 && counts[symbols - 1] == 0) --symbols;
  Wide total = 0;
  for (size_t s = 0; s < symbols; ++s) total += counts[s];
  if (total == 0) {
    frequency[0] = kProbabilityOne;
    return frequency;
  }
  uint32_t sum = 0;
  for (size_t s = 0; s < symbols; ++s) {
    if (counts[s] == 0) continue;
    frequency[s] = std::max<uint32_t>(
        1, static_cast<uint32_t>(Wide{counts[s]} * kProbabilityOne / total));
    sum += frequency[s];
  }
  // Flooring and the least frequency of 1 each move the sum by less than 256.
  // One unit at a time goes where the bits change most (or least): where count
  // / frequency is greatest (or smallest), the lowest symbol of equal ones.
  const bool add = sum < kProbabilityOne;
  const auto later = [&](uint8_t a, uint8_t b) {
    const Wide of_a = Wide{counts[a]} * frequency[b],
               of_b = Wide{counts[b]} * frequency[a];
    return of_a != of_b ? (of_a < of_b) == add : a > b;
  };
  const auto may_move = [&](size_t s) {
    return counts[s] != 0 && (add || frequency[s] > 1);
  };
  std::array<uint8_t, 256> heap;
  auto end = heap.begin();
  for (size_t s = 0; s < symbols; ++s) {
    if (may_move(s)) *end++ = s;
  }
  std::make_heap(heap.begin(), end, later);
  for (; sum != kProbabilityOne; sum += add ? 1 : -1) {
    std::pop_heap(heap.begin(), end, later);
    const uint8_t best = *--end;
    frequency[best] += add ? 1 : -1;
    if (!may_move(best)) continue;
    ++end;
    std::push_heap(heap.begin(), end, later);
  }
  return frequency;
}

absl::StatusOr<Bytes> EncodeSymbols(const EntropyShape& shape,
                                    absl::Span<const uint8_t> symbols,
                                    Backend backend) {
  if (absl::Status status = CheckShape(shape, symbols.size()); !status.ok())
    return status;
#if defined(__x86_64__)
  Bytes coded;
  if (backend == Backend::kAvx512 &&
      kernels::EncodeAvx512(shape, symbols.data(), &coded))
    return coded;
#endif
  (void)backend;
  return EncodePortable(shape, symbols);  // Or to name what is wrong.
}

absl::Status DecodeSymbols(const EntropyShape& shape, ByteSpan coded,
                           absl::Span<uint8_t> symbols, Backend backend) {
  if (absl::Status status = CheckShape(shape, symbols.size()); !status.ok())
    return status;
  kernels::RansStates states;
  absl::StatusOr<ByteSpan> words = kernels::OpenStream(coded, &states);
  if (!words.ok()) return words.status();
#if defined(__x86_64__)
  if (backend == Backend::kAvx512 && kernels::SymbolsAreFew(shape)) {
    return kernels::CheckStreamEnd(
        kernels::DecodeFewAvx512(shape, *words, states.data(), symbols.data()),
        states);
  }
#endif
  const auto slots = std::make_unique_for_overwrite<uint32_t[]>(
      shape.tables.size() * kProbabilityOne);
  for (size_t k = 0; k < shape.tables.size(); ++k)
    MakeSlots(*shape.tables[k], slots.get() + k * kProbabilityOne);
  auto* decode = &kernels::DecodePortable;
#if defined(__x86_64__)
  if (backend == Backend::kAvx2) decode = &kernels::DecodeAvx2;
  if (backend == Backend::kAvx512) decode = &kernels::DecodeAvx512;
#endif
  (void)backend;
  return kernels::CheckStreamEnd(
      decode(shape, slots.get(), *words, states.data(), symbols.data()),
      states);
}

}  // namespace latentkv
