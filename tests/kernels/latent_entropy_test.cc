#include "kernels/latent_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "codec/latent_model.h"
#include "core/digest.h"
#include "kernels/cpu/latent_context.h"
#include "kernels/latents.h"

namespace latentkv {
namespace {

constexpr size_t kStateBytes = kEntropyLanes * sizeof(uint32_t);

const LatentTables& Tables() {
  static const LatentTables tables = MakeLatentTables();
  return tables;
}

// The mean magnitude that a class stands for.
double ScaleOf(uint8_t latent_class) {
  return std::exp2(latent_class / 4.0 - 6);
}

struct Sample {
  std::vector<uint8_t> classes;
  std::vector<int16_t> latents;  // [rows][kBlockTokens]
};

// Laplace latents of the classes' scales in descending order, each token's
// times a factor of its own.
Sample Draw(uint32_t rows, uint8_t first_class, uint8_t last_class,
            double octaves_of_activity, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> octaves(-octaves_of_activity,
                                                 octaves_of_activity);
  std::vector<double> factor(kBlockTokens);
  for (double& f : factor) f = std::exp2(octaves(random));
  Sample sample;
  for (uint32_t r = 0; r < rows; ++r) {
    sample.classes.push_back(static_cast<uint8_t>(
        first_class - (first_class - last_class) * r / std::max(1u, rows)));
    for (double f : factor) {
      std::exponential_distribution<double> magnitude(
          1 / (f * ScaleOf(sample.classes.back())));
      const double value = std::min(magnitude(random), 32000.0);
      sample.latents.push_back(
          static_cast<int16_t>(std::lrint(random() % 2 ? value : -value)));
    }
  }
  return sample;
}

// Any class at any row, any latent: most small, some that must escape, and the
// ends of int16.
Sample DrawAnything(uint32_t rows, uint32_t seed) {
  std::mt19937 random(seed);
  Sample sample;
  for (uint32_t r = 0; r < rows; ++r) {
    sample.classes.push_back(random() % kLatentClasses);
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const int16_t any = static_cast<int16_t>(random());
      sample.latents.push_back(random() % 50 == 0 ? (any % 2 ? 32767 : -32768)
                                                  : any >> (5 + random() % 11));
    }
  }
  return sample;
}

// What DecodeLatents gives for `sample`, its escapes as they were coded.
std::vector<uint8_t> SymbolsOf(const Sample& sample,
                               const CodedLatents& coded) {
  std::vector<uint8_t> symbols;
  for (int q : sample.latents)
    symbols.push_back(static_cast<uint8_t>(q < 0 ? -2 * q - 1 : 2 * q));
  for (const LatentEscape& escape : coded.escapes)
    symbols[escape.place] = kEscapeSymbol;
  return symbols;
}

// Decodes a copy of the exact size on the heap: the address sanitizer sees a
// read beyond.
absl::StatusCode Decode(const std::vector<uint8_t>& classes, const Bytes& coded,
                        std::vector<uint8_t>* symbols, Backend backend) {
  const std::unique_ptr<uint8_t[]> exact(new uint8_t[coded.size()]);
  std::copy(coded.begin(), coded.end(), exact.get());
  symbols->assign(classes.size() * kBlockTokens, 0xee);
  return DecodeLatents(Tables(), classes, {exact.get(), coded.size()},
                       absl::MakeSpan(*symbols), backend)
      .code();
}

TEST(LatentEntropy, EveryBackendWritesTheSameBytesAndReturnsTheSymbols) {
  uint32_t seed = 0;
  for (uint32_t rows : {0, 1, 2, 15, 16, 17, 31, 33, 48, 200, 1000}) {
    ++seed;
    for (const Sample& sample :
         {Draw(rows, 50, 8, 2, seed), Draw(rows, 63, 0, 0, seed),
          DrawAnything(rows, seed)}) {
      const auto coded = EncodeLatents(Tables(), sample.classes, sample.latents,
                                       Backend::kPortable);
      ASSERT_TRUE(coded.ok()) << coded.status();
      for (Backend backend : AvailableBackends()) {
        std::vector<uint8_t> symbols;
        ASSERT_EQ(Decode(sample.classes, coded->bytes, &symbols, backend),
                  absl::StatusCode::kOk)
            << BackendName(backend) << ", " << rows << " rows";
        ASSERT_EQ(symbols, SymbolsOf(sample, *coded))
            << BackendName(backend) << ", " << rows << " rows";
        const auto second =
            EncodeLatents(Tables(), sample.classes, sample.latents, backend);
        ASSERT_EQ(second->bytes, coded->bytes)
            << BackendName(backend) << ", " << rows << " rows";
        ASSERT_EQ(second->escapes.size(), coded->escapes.size());
        for (size_t e = 0; e < coded->escapes.size(); ++e) {
          ASSERT_EQ(second->escapes[e].place, coded->escapes[e].place);
          ASSERT_EQ(second->escapes[e].latent, coded->escapes[e].latent);
        }
      }
    }
  }
}

// Of latents drawn from integers, in tokens of very different activity, through
// many looks at it.
TEST(LatentEntropy, BytesAreTheGoldenOnes) {
  std::mt19937 random(14);
  Sample sample;
  for (uint32_t r = 0; r < 150; ++r) {
    sample.classes.push_back(static_cast<uint8_t>(45 - r / 5));
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const int bound =
          (200 - static_cast<int>(r)) * (1 + t % 7) / (t % 5 == 0 ? 2 : 60);
      sample.latents.push_back(static_cast<int16_t>(
          static_cast<int>(random() % (2 * bound + 1)) - bound));
    }
  }
  const CodedLatents coded =
      *EncodeLatents(Tables(), sample.classes, sample.latents);
  EXPECT_GT(coded.escapes.size(), 100u);
  EXPECT_EQ(Sha256({coded.bytes}).Hex(),
            "3d9e0b4f03a82520b76dc9710ee5d8f690452bef1b23f1073b09982ea6ca434b");
}

TEST(LatentEntropy, EscapesSayWhereAndWhat) {
  const Sample sample = DrawAnything(100, 3);
  const CodedLatents coded =
      *EncodeLatents(Tables(), sample.classes, sample.latents);
  ASSERT_FALSE(coded.escapes.empty());
  uint32_t beyond_any_symbol = 0;
  for (size_t e = 0; e < coded.escapes.size(); ++e) {
    EXPECT_TRUE(e == 0 || coded.escapes[e].place > coded.escapes[e - 1].place);
    EXPECT_EQ(coded.escapes[e].latent, sample.latents[coded.escapes[e].place]);
    beyond_any_symbol += std::abs(int{coded.escapes[e].latent}) > kMagnitudeMax;
  }
  EXPECT_EQ(beyond_any_symbol,
            std::count_if(sample.latents.begin(), sample.latents.end(),
                          [](int16_t latent) {
                            return std::abs(int{latent}) > kMagnitudeMax;
                          }));
}

TEST(LatentEntropy, SizeIsTheInformationUnderTheClassesInUse) {
  const Sample sample = Draw(600, 46, 10, 1.5, 5);
  const CodedLatents coded =
      *EncodeLatents(Tables(), sample.classes, sample.latents);
  const std::vector<uint8_t> symbols = SymbolsOf(sample, coded);
  kernels::LatentContext context(Tables(), sample.classes);
  double bits = 0;
  for (size_t i = 0; i < symbols.size(); ++i) {
    const uint32_t row = i / kBlockTokens, token = i % kBlockTokens;
    bits -= std::log2(
        Tables().tables[context.Class(row, token)].frequency[symbols[i]] /
        double{kProbabilityOne});
    context.Add(token, symbols[i]);
    if (token == kBlockTokens - 1) context.EndRow(row);
  }
  EXPECT_LT(coded.bytes.size(), bits / 8 * 1.03 + kStateBytes);
  EXPECT_GT(coded.bytes.size(), bits / 8);
}

TEST(LatentEntropy, LatentsAsTheirClassesSayCostLittleMoreThanLaplaceEntropy) {
  const Sample sample = Draw(800, 38, 14, 0, 6);
  const CodedLatents coded =
      *EncodeLatents(Tables(), sample.classes, sample.latents);
  double bits = 0;
  for (size_t i = 0; i < sample.latents.size(); ++i) {
    const double b = ScaleOf(sample.classes[i / kBlockTokens]),
                 q = std::abs(int{sample.latents[i]});
    bits -= std::log2(
        q == 0 ? 1 - std::exp(-0.5 / b)
               : 0.5 * (std::exp((0.5 - q) / b) - std::exp((-0.5 - q) / b)));
  }
  EXPECT_LT(coded.bytes.size() + 6 * coded.escapes.size(),
            bits / 8 * 1.03 + kStateBytes);
}

// Tokens that are more or less active than the classes say are found out from
// their first rows.
TEST(LatentEntropy, TokensOfTheirOwnActivityCostLessThanUnderTheClassesAlone) {
  const Sample sample = Draw(800, 46, 18, 2, 7);
  const CodedLatents coded =
      *EncodeLatents(Tables(), sample.classes, sample.latents);
  double bits = 0;
  for (size_t i = 0; i < sample.latents.size(); ++i) {
    const uint8_t latent_class = sample.classes[i / kBlockTokens];
    const EntropyTable& table = Tables().tables[latent_class];
    const int q = sample.latents[i];
    const bool escaped = std::abs(q) > Tables().magnitude_max[latent_class];
    const uint8_t symbol =
        escaped ? kEscapeSymbol
                : static_cast<uint8_t>(q < 0 ? -2 * q - 1 : 2 * q);
    bits -= std::log2(table.frequency[symbol] / double{kProbabilityOne});
    if (escaped) bits += 48;
  }
  EXPECT_LT(coded.bytes.size() + 6 * coded.escapes.size(), 0.9 * bits / 8);
}

TEST(LatentEntropy,
     DamageIsFoundOrDecodesToOtherSymbolsAndNoByteOutsideIsRead) {
  const Sample sample = Draw(37, 44, 12, 1, 9);
  const Bytes coded =
      EncodeLatents(Tables(), sample.classes, sample.latents)->bytes;
  for (Backend backend : AvailableBackends()) {
    std::vector<uint8_t> intact, symbols;
    ASSERT_EQ(Decode(sample.classes, coded, &intact, backend),
              absl::StatusCode::kOk);
    for (size_t size = 0; size < coded.size(); ++size) {
      const Bytes shorter(coded.begin(), coded.begin() + size);
      ASSERT_EQ(Decode(sample.classes, shorter, &symbols, backend),
                absl::StatusCode::kDataLoss)
          << size;
    }
    for (size_t more = 1; more <= 70; ++more) {
      Bytes longer = coded;
      longer.resize(coded.size() + more);
      ASSERT_EQ(Decode(sample.classes, longer, &symbols, backend),
                absl::StatusCode::kDataLoss)
          << more;
    }
    for (size_t bit = 0; bit < 8 * coded.size(); ++bit) {
      Bytes damaged = coded;
      damaged[bit / 8] ^= 1 << bit % 8;
      const absl::StatusCode code =
          Decode(sample.classes, damaged, &symbols, backend);
      if (code == absl::StatusCode::kOk) {
        ASSERT_NE(symbols, intact) << "bit " << bit;
      } else {
        ASSERT_EQ(code, absl::StatusCode::kDataLoss) << "bit " << bit;
      }
    }
  }
}

TEST(LatentEntropy, BytesThatDecodeAreThoseThatTheEncoderWrites) {
  // So short that the end is often met by chance.
  const Sample sample = Draw(2, 30, 30, 0, 10);
  const Bytes coded =
      EncodeLatents(Tables(), sample.classes, sample.latents)->bytes;
  std::mt19937 random(11);
  uint32_t decoded = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes damaged = coded;
    for (uint32_t changes = 1 + random() % 2; changes > 0; --changes) {
      damaged[random() % damaged.size()] ^= 1 << random() % 8;
    }
    std::vector<uint8_t> symbols;
    if (Decode(sample.classes, damaged, &symbols, BestBackend()) !=
        absl::StatusCode::kOk)
      continue;
    ++decoded;
    Sample found = {sample.classes, {}};
    // Anything that no symbol can hold escapes again.
    for (int s : symbols) {
      found.latents.push_back(static_cast<int16_t>(s == kEscapeSymbol ? 32767
                                                   : s % 2 ? -(s + 1) / 2
                                                           : s / 2));
    }
    ASSERT_EQ(EncodeLatents(Tables(), found.classes, found.latents)->bytes,
              damaged);
  }
  EXPECT_GT(decoded, 0u);
}

TEST(LatentEntropy, BackendsAgreeOnArbitraryBytes) {
  std::mt19937 random(12);
  for (int round = 0; round < 300; ++round) {
    const Sample sample = DrawAnything(random() % 40, round);
    Bytes noise(kStateBytes + 2 * (random() % 1500));
    for (uint8_t& byte : noise) byte = random();
    // States in range, so that decoding begins.
    for (size_t lane = 0; lane < kEntropyLanes; ++lane)
      noise[4 * lane + 2] |= 1;
    std::vector<uint8_t> portable;
    const absl::StatusCode code =
        Decode(sample.classes, noise, &portable, Backend::kPortable);
    for (Backend backend : AvailableBackends()) {
      std::vector<uint8_t> symbols;
      ASSERT_EQ(Decode(sample.classes, noise, &symbols, backend), code)
          << BackendName(backend);
    }
  }
}

TEST(LatentEntropy, RefusesSizesThatDoNotFit) {
  Sample sample = Draw(3, 20, 20, 0, 13);
  const Bytes coded =
      EncodeLatents(Tables(), sample.classes, sample.latents)->bytes;
  std::vector<uint8_t> symbols(3 * kBlockTokens - 1);
  EXPECT_EQ(
      DecodeLatents(Tables(), sample.classes, coded, absl::MakeSpan(symbols))
          .code(),
      absl::StatusCode::kInvalidArgument);
  sample.latents.pop_back();
  EXPECT_EQ(
      EncodeLatents(Tables(), sample.classes, sample.latents).status().code(),
      absl::StatusCode::kInvalidArgument);
  sample.latents.push_back(0);
  sample.classes[1] = kLatentClasses;
  EXPECT_EQ(
      EncodeLatents(Tables(), sample.classes, sample.latents).status().code(),
      absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace latentkv
