// The entries on mutated seeds, the same ones each time: some fuzzing wherever
// the tests run.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/codec/synthetic.h"
#include "tests/fuzz/entries.h"

namespace latentkv {
namespace {

void Mutate(Random* random, Bytes* bytes) {
  if (bytes->empty())
    return bytes->push_back(static_cast<uint8_t>(random->Bits()));
  // Often near the start, where lengths and counts lie.
  const uint32_t within =
      random->Below(2) ? bytes->size() : std::min<uint32_t>(bytes->size(), 64);
  const uint32_t at = random->Below(within),
                 count = std::min<uint32_t>(1 + random->Below(16),
                                            bytes->size() - at);
  constexpr uint32_t kEdges[] = {0,          1,         0x7f,       0x80,
                                 0xff,       0xffff,    0x7fffffff, 0x80000000,
                                 0xffffffff, 0x7f800000};
  switch (random->Below(6)) {
    case 0:
      (*bytes)[at] ^= 1 << random->Below(8);
      break;
    case 1:
      (*bytes)[at] = static_cast<uint8_t>(random->Bits());
      break;
    case 2:
      std::memcpy(bytes->data() + at, &kEdges[random->Below(10)],
                  std::min(count, 4u));
      break;
    case 3:
      bytes->erase(bytes->begin() + at, bytes->begin() + at + count);
      break;
    case 4:
      bytes->insert(bytes->begin() + at, count,
                    static_cast<uint8_t>(random->Bits()));
      break;
    case 5:
      bytes->resize(random->Below(8) ? bytes->size() + count : at);
      break;
  }
}

class Entries : public testing::TestWithParam<size_t> {};

TEST_P(Entries, KeepTheirPromisesOnTheCorpus) {
  const FuzzEntry& entry = FuzzEntries()[GetParam()];
  ASSERT_FALSE(entry.corpus.empty());
  for (const Bytes& input : entry.corpus) entry.run(input);
}

TEST_P(Entries, KeepTheirPromisesOnMutatedSeeds) {
  const FuzzEntry& entry = FuzzEntries()[GetParam()];
  Random random(GetParam());
  for (const Bytes& seed : entry.seeds) {
    entry.run(seed);
    for (int round = 0; round < 10000; ++round) {
      Bytes input = seed;
      for (uint32_t changes = 1 + random.Below(4); changes > 0; --changes)
        Mutate(&random, &input);
      entry.run(input);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Entries,
                         testing::Range<size_t>(0, FuzzEntries().size()),
                         [](const auto& test) {
                           return FuzzEntries()[test.param].name;
                         });

// Not a test: with LATENTKV_WRITE_SEEDS=DIR, what libFuzzer starts from.
TEST(Seeds, AreWrittenWhereTheyAreAskedFor) {
  const char* folder = std::getenv("LATENTKV_WRITE_SEEDS");
  if (folder == nullptr) GTEST_SKIP() << "LATENTKV_WRITE_SEEDS is not set";
  for (const FuzzEntry& entry : FuzzEntries()) {
    const std::filesystem::path path =
        std::filesystem::path(folder) / entry.name;
    std::filesystem::create_directories(path);
    std::vector<Bytes> inputs = entry.seeds;
    inputs.insert(inputs.end(), entry.corpus.begin(), entry.corpus.end());
    for (size_t i = 0; i < inputs.size(); ++i) {
      std::ofstream(path / std::to_string(i), std::ios::binary)
          << AsText(inputs[i]);
    }
  }
}

// Nor this: with LATENTKV_PACK_CORPUS=DIR, what libFuzzer merged into
// DIR/<entry> becomes DIR/<entry>.packed.
TEST(Seeds, ArePackedWhereTheyAreAskedFor) {
  const char* folder = std::getenv("LATENTKV_PACK_CORPUS");
  if (folder == nullptr) GTEST_SKIP() << "LATENTKV_PACK_CORPUS is not set";
  for (const FuzzEntry& entry : FuzzEntries()) {
    std::vector<std::filesystem::path> paths;
    const std::filesystem::path from =
        std::filesystem::path(folder) / entry.name;
    for (const auto& file : std::filesystem::directory_iterator(from))
      paths.push_back(file.path());
    std::sort(paths.begin(), paths.end());
    std::vector<Bytes> inputs;
    for (const auto& path : paths) {
      std::ifstream file(path, std::ios::binary);
      inputs.emplace_back(std::istreambuf_iterator<char>(file),
                          std::istreambuf_iterator<char>());
    }
    std::ofstream(from.string() + ".packed", std::ios::binary)
        << AsText(PackCorpus(inputs));
  }
}

}  // namespace
}  // namespace latentkv
