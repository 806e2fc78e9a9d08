#include "kernels/entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

namespace latentkv {
namespace {

// Rows with tables of different sharpness, and symbols drawn from them.
struct Sample {
  std::vector<EntropyTable> tables;
  std::vector<const EntropyTable*> pointers;
  std::vector<uint16_t> table_of_row;
  std::vector<uint8_t> symbols;
  EntropyShape shape;
};

// Symbols are below `symbols_end`.
void Draw(uint32_t rows, uint32_t row_symbols, uint32_t seed, Sample* sample,
          int symbols_end = 256) {
  std::mt19937 random(seed);
  for (int k = 0; k < 6; ++k) {
    std::vector<uint64_t> counts(symbols_end);
    for (int s = 0; s < symbols_end; ++s)
      counts[s] =
          static_cast<uint64_t>(1e9 * std::exp(-s / std::pow(3.0, k - 1)));
    sample->tables.push_back(*MakeEntropyTable(NormalizeCounts(counts)));
  }
  // One certain symbol.
  sample->tables.push_back(
      *MakeEntropyTable(NormalizeCounts(std::vector<uint64_t>(256))));
  std::vector<uint32_t> slots(sample->tables.size() * kProbabilityOne);
  for (size_t k = 0; k < sample->tables.size(); ++k) {
    MakeSlots(sample->tables[k], slots.data() + k * kProbabilityOne);
    sample->pointers.push_back(&sample->tables[k]);
  }
  for (uint32_t row = 0; row < rows; ++row) {
    sample->table_of_row.push_back(random() % sample->tables.size());
    const uint32_t* table =
        slots.data() + sample->table_of_row.back() * kProbabilityOne;
    for (uint32_t i = 0; i < row_symbols; ++i) {
      sample->symbols.push_back(table[random() % kProbabilityOne] & 0xff);
    }
  }
  sample->shape = {rows, row_symbols, sample->table_of_row, sample->pointers};
}

TEST(NormalizeCounts, SumsToOneAndKeepsEverySymbolThatOccurs) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint64_t> counts(1 + random() % 256);
    for (uint64_t& count : counts)
      count = random() % 3 == 0 ? 0 : random() >> random() % 64;
    counts[0] |= 1;
    const auto frequency = NormalizeCounts(counts);
    EXPECT_EQ(std::accumulate(frequency.begin(), frequency.end(), 0u),
              kProbabilityOne);
    for (size_t s = 0; s < counts.size(); ++s)
      EXPECT_EQ(frequency[s] > 0, counts[s] > 0);
  }
  EXPECT_EQ(NormalizeCounts({})[0], kProbabilityOne);
  const auto halves = NormalizeCounts({5, 0, 5});
  EXPECT_EQ(halves[0], 2048);
  EXPECT_EQ(halves[2], 2048);
}

TEST(MakeEntropyTable, RefusesFrequenciesThatDoNotSumToOne) {
  EXPECT_FALSE(MakeEntropyTable({4095}).ok());
  EXPECT_FALSE(MakeEntropyTable({4096, 1}).ok());
  EXPECT_TRUE(MakeEntropyTable({4095, 1}).ok());
}

TEST(Entropy, EveryBackendWritesTheSameAndReturnsTheSymbols) {
  uint32_t seed = 0;
  for (uint32_t rows : {0, 1, 2, 7, 300}) {
    // Symbols below 32 are looked up in other ways than more are.
    for (int symbols_end : {1, 2, 5, 31, 32, 33, 256}) {
      const uint32_t row_symbols = 32 * (1 + seed % 3);
      Sample sample;
      Draw(rows, row_symbols, ++seed, &sample, symbols_end);
      const Bytes coded = *EncodeSymbols(sample.shape, sample.symbols);
      for (Backend backend : AvailableBackends()) {
        EXPECT_EQ(*EncodeSymbols(sample.shape, sample.symbols, backend), coded)
            << BackendName(backend);
        std::vector<uint8_t> decoded(sample.symbols.size(), 0xee);
        const absl::Status status = DecodeSymbols(
            sample.shape, coded, absl::MakeSpan(decoded), backend);
        EXPECT_TRUE(status.ok()) << BackendName(backend) << " " << status;
        EXPECT_EQ(decoded, sample.symbols) << BackendName(backend);
      }
    }
  }
}

TEST(Entropy, SizeIsCloseToTheInformation) {
  Sample sample;
  Draw(2000, 64, 5, &sample);
  double bits = 0;
  for (size_t i = 0; i < sample.symbols.size(); ++i) {
    bits -= std::log2(sample.tables[sample.table_of_row[i / 64]]
                          .frequency[sample.symbols[i]] /
                      4096.0);
  }
  const Bytes coded = *EncodeSymbols(sample.shape, sample.symbols);
  EXPECT_LT(coded.size(), bits / 8 * 1.01 + 32 * 4);
  EXPECT_GT(coded.size(), bits / 8);
}

class EntropyOf : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Symbols, EntropyOf, testing::Values(16, 32, 256));

TEST_P(EntropyOf, DamageIsFoundAndNoByteOutsideIsRead) {
  Sample sample;
  Draw(60, 64, 9, &sample, GetParam());
  const Bytes coded = *EncodeSymbols(sample.shape, sample.symbols);
  std::mt19937 random(4);
  for (Backend backend : AvailableBackends()) {
    std::vector<uint8_t> decoded(sample.symbols.size());
    // A copy of the exact size on the heap: the address sanitizer sees a read
    // beyond.
    const auto code = [&](const Bytes& bytes) {
      const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
      std::copy(bytes.begin(), bytes.end(), exact.get());
      return DecodeSymbols(sample.shape, {exact.get(), bytes.size()},
                           absl::MakeSpan(decoded), backend)
          .code();
    };
    ASSERT_EQ(code(coded), absl::StatusCode::kOk);
    for (size_t size = 0; size < coded.size(); ++size) {
      ASSERT_EQ(code(Bytes(coded.begin(), coded.begin() + size)),
                absl::StatusCode::kDataLoss)
          << size;
    }
    for (size_t more = 1; more <= 70; ++more) {
      Bytes longer = coded;
      longer.resize(coded.size() + more);
      ASSERT_EQ(code(longer), absl::StatusCode::kDataLoss) << more;
    }
    for (int round = 0; round < 3000; ++round) {
      Bytes damaged = coded;
      damaged[random() % damaged.size()] ^= 1 << random() % 8;
      const absl::StatusCode result = code(damaged);
      // Undetected damage must be another valid stream: its symbols encode to
      // just those bytes.
      if (result == absl::StatusCode::kOk) {
        EXPECT_EQ(*EncodeSymbols(sample.shape, decoded), damaged);
        EXPECT_NE(decoded, sample.symbols);
      } else {
        EXPECT_EQ(result, absl::StatusCode::kDataLoss);
      }
    }
  }
}

TEST_P(EntropyOf, ArbitraryBytesNeverCrashAndBackendsAgreeOnThem) {
  Sample sample;
  Draw(40, 64, 11, &sample, GetParam());
  std::mt19937 random(12);
  for (int round = 0; round < 500; ++round) {
    Bytes noise(128 + 2 * (random() % 2000));
    for (uint8_t& byte : noise) byte = random();
    for (Backend backend : AvailableBackends()) {
      std::vector<uint8_t> decoded(sample.symbols.size());
      EXPECT_FALSE(
          DecodeSymbols(sample.shape, noise, absl::MakeSpan(decoded), backend)
              .ok())
          << BackendName(backend);
    }
  }
}

TEST_P(EntropyOf, SymbolsWithoutAFrequencyAreRefused) {
  Sample sample;
  Draw(4, 64, 3, &sample, GetParam());
  const std::vector<uint16_t> certain(4, 6);
  sample.shape.table_of_row = certain;
  for (Backend backend : AvailableBackends()) {
    // Symbol 0 is the one that can be.
    for (int symbol : {1, 31, 32, 64, 255}) {
      std::vector<uint8_t> symbols(4 * 64);
      for (size_t place : {0, 31, 100, 255}) {
        symbols[place] = symbol;
        EXPECT_EQ(EncodeSymbols(sample.shape, symbols, backend).status().code(),
                  absl::StatusCode::kInvalidArgument);
        symbols[place] = 0;
      }
      EXPECT_TRUE(EncodeSymbols(sample.shape, symbols, backend).ok());
    }
  }
}

TEST(Entropy, RefusesShapesThatDoNotFit) {
  Sample sample;
  Draw(4, 64, 2, &sample);
  std::vector<uint8_t> symbols = sample.symbols;
  const auto encode = [&](const EntropyShape& shape) {
    return EncodeSymbols(shape, symbols).status().code();
  };
  EntropyShape shape = sample.shape;
  shape.row_symbols = 63;
  EXPECT_EQ(encode(shape), absl::StatusCode::kInvalidArgument);
  shape = sample.shape;
  shape.rows = 5;
  EXPECT_EQ(encode(shape), absl::StatusCode::kInvalidArgument);
  shape = sample.shape;
  const std::vector<uint16_t> beyond(4, 7);
  shape.table_of_row = beyond;
  EXPECT_EQ(encode(shape), absl::StatusCode::kInvalidArgument);
  const std::vector<uint16_t> certain(4, 6);
  shape.table_of_row = certain;
  symbols.assign(256, 1);  // Frequency 0 there.
  EXPECT_EQ(encode(shape), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
