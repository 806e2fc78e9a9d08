// Entropy coding of rows of byte symbols under static models: rANS in 32 lanes,
// decoded 16 lanes at a time with AVX-512, 8 with AVX2, one by one elsewhere; a
// warp of a GPU fits it. Same bytes everywhere: docs/formats/entropy.md.
#ifndef LATENTKV_KERNELS_ENTROPY_H_
#define LATENTKV_KERNELS_ENTROPY_H_

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "kernels/backend.h"

namespace latentkv {

inline constexpr uint32_t kProbabilityBits = 12;
inline constexpr uint32_t kProbabilityOne = 1u << kProbabilityBits;
inline constexpr uint32_t kEntropyLanes = 32;

// One distribution over the 256 byte values.
struct EntropyTable {
  // Sums to kProbabilityOne; 0: the symbol cannot be coded.
  std::array<uint16_t, 256> frequency{};
  std::array<uint16_t, 256> start{};  // Sum of the frequencies before.
};

// InvalidArgument unless the frequencies sum to kProbabilityOne.
absl::StatusOr<EntropyTable> MakeEntropyTable(
    absl::Span<const uint16_t> frequency);

// What a decoder looks up by the lowest bits of a state: symbol | frequency - 1
// << 8 | (slot - start) << 20, into `slots` [kProbabilityOne].
void MakeSlots(const EntropyTable& table, uint32_t* slots);

// Frequencies that sum to kProbabilityOne from counts of any size; every symbol
// with a count above 0 gets at least 1. Integers alone, so that every machine
// makes the same table. All-zero counts give symbol 0 the whole.
std::array<uint16_t, 256> NormalizeCounts(absl::Span<const uint64_t> counts);

// Rows of row_symbols symbols each, row_symbols a multiple of kEntropyLanes;
// symbol i of a row goes through lane i % 32. Row r is coded under
// tables[table_of_row[r]].
struct EntropyShape {
  uint32_t rows = 0;
  uint32_t row_symbols = 0;
  absl::Span<const uint16_t> table_of_row;  // [rows]
  absl::Span<const EntropyTable* const> tables;
};

// InvalidArgument if a symbol has frequency 0 in its row's table. `symbols` is
// [rows][row_symbols]. `backend` must be available; every one gives the same
// bytes.
absl::StatusOr<Bytes> EncodeSymbols(const EntropyShape& shape,
                                    absl::Span<const uint8_t> symbols,
                                    Backend backend = BestBackend());

// DataLoss unless `coded` is exactly what EncodeSymbols wrote for some symbols:
// every lane ends in its start state and every byte is used. InvalidArgument if
// the shape and `symbols` do not fit. `symbols` may be written on failure.
// Never reads outside `coded`. `backend` must be available.
absl::Status DecodeSymbols(const EntropyShape& shape, ByteSpan coded,
                           absl::Span<uint8_t> symbols,
                           Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_ENTROPY_H_
