// Kernels alone, one thread: symbols, multiply-adds and bytes a second.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>

#include "kernels/backend.h"
#include "kernels/entropy.h"
#include "kernels/pages.h"
#include "kernels/project.h"
#include "kernels/reconstruct.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

Backend BackendOf(benchmark::State& state) {
  const auto backend = static_cast<Backend>(state.range(0));
  state.SetLabel(BackendName(backend));
  if (backend > BestBackend()) state.SkipWithError("not on this machine");
  return backend;
}

// 2048 rows of 64 symbols, 4096 tables' worth of sharpness spread over 12.
void EntropyDecode(benchmark::State& state) {
  const Backend backend = BackendOf(state);
  std::mt19937 random(1);
  std::vector<EntropyTable> tables;
  for (int k = 0; k < 12; ++k) {
    std::vector<uint64_t> counts(256);
    for (int s = 0; s < 256; ++s)
      counts[s] =
          static_cast<uint64_t>(1e9 * std::exp(-s / std::pow(1.6, k - 4)));
    tables.push_back(*MakeEntropyTable(NormalizeCounts(counts)));
  }
  std::vector<const EntropyTable*> pointers;
  std::vector<uint32_t> slots(tables.size() * kProbabilityOne);
  for (const EntropyTable& table : tables) {
    MakeSlots(table, slots.data() + pointers.size() * kProbabilityOne);
    pointers.push_back(&table);
  }
  std::vector<uint16_t> table_of_row;
  std::vector<uint8_t> symbols;
  for (uint32_t row = 0; row < 2048; ++row) {
    // Latents come in descending scale.
    table_of_row.push_back(11 - row * 12 / 2048);
    for (int i = 0; i < 64; ++i) {
      symbols.push_back(slots[table_of_row.back() * kProbabilityOne +
                              random() % kProbabilityOne] &
                        0xff);
    }
  }
  const EntropyShape shape{2048, 64, table_of_row, pointers};
  const Bytes coded = *EncodeSymbols(shape, symbols);
  for (auto _ : state) {
    if (!DecodeSymbols(shape, coded, absl::MakeSpan(symbols), backend).ok())
      state.SkipWithError("damaged");
  }
  state.SetItemsProcessed(state.iterations() * symbols.size());
  state.counters["bits/symbol"] = 8.0 * coded.size() / symbols.size();
}

// One group of four layers of 8 heads of 128; the second argument is the share
// of latents that are not 0, in percent.
void ReconstructGroup(benchmark::State& state) {
  const Backend backend = BackendOf(state);
  constexpr uint32_t kRank = 2048, kChannels = 8192, kTokens = 64;
  std::mt19937 random(2);
  std::vector<int8_t> decoder(size_t{kRank} * kChannels);
  for (int8_t& d : decoder) d = static_cast<int8_t>(random());
  const PackedDecoder packed = PackDecoder(decoder, kRank, kChannels);
  std::vector<int16_t> latents(kTokens * kRank);
  for (int16_t& q : latents)
    q = random() % 100 < static_cast<uint32_t>(state.range(1))
            ? 1 + random() % 5
            : 0;
  std::vector<int32_t> sums(size_t{kTokens} * kChannels);
  for (auto _ : state)
    Reconstruct(packed, latents, kRank, kTokens, kChannels,
                absl::MakeSpan(sums), backend);
  state.counters["GMAC/s"] = benchmark::Counter(
      1e-9 * kRank * kChannels * kTokens * state.iterations(),
      benchmark::Counter::kIsRate);
}

// A block of 36 layers of 8 heads of 128 in bf16 (9.4 MB) into pages of 128
// tokens, K transposed as vLLM on the CPU.
void Scatter(benchmark::State& state) {
  Geometry geometry;
  LayerGeometry layer;
  layer.kv_heads = 8;
  layer.head_dim = 128;
  geometry.layers.assign(36, layer);
  constexpr uint32_t kPageTokens = 128, kPages = 8;
  const int64_t page = int64_t{kPageTokens} * layer.Channels();
  PagedCache cache;
  cache.page_tokens = kPageTokens;
  cache.page_count = kPages;
  std::vector<Bytes> memory;
  for (size_t l = 0; l < geometry.layers.size(); ++l) {
    memory.emplace_back(2 * page * kPages);
    PagedLayer paged{
        memory.back().data(), memory.back().data() + page * kPages, {}, {}};
    paged.key_strides = paged.value_strides = {
        page, 2 * layer.head_dim, 2 * layer.head_dim * kPageTokens, 2};
    if (state.range(0) != 0)
      paged.key_strides = {page, 2, 2 * layer.head_dim * kPageTokens,
                           2 * kPageTokens};
    cache.layers.push_back(paged);
  }
  std::vector<TokenRun> runs;
  if (!RunsOfTokens({5, 2}, kPageTokens, kPages, 64, 64, &runs).ok())
    state.SkipWithError("runs");
  const Bytes raw(RawBytes(geometry, 64));
  for (auto _ : state)
    ScatterRaw(geometry, 0, geometry.layers.size(), raw, cache, runs);
  state.SetBytesProcessed(state.iterations() * raw.size());
  state.SetLabel(state.range(0) != 0 ? "K transposed" : "by heads");
}

// Keys of a block rotated and rounded to bf16.
void RotateAndRound(benchmark::State& state) {
  const Backend backend = BackendOf(state);
  LayerGeometry layer;
  layer.kv_heads = 8;
  layer.head_dim = layer.rotary_dim = 128;
  layer.pairing = RotaryPairing::kHalves;
  layer.inverse_frequencies.assign(64, 0.01);
  const RotaryTable table = MakeRotaryTable(layer, 4096, 64);
  std::vector<float> keys(64 * layer.ChannelsOf(true), 1.0f);
  Bytes out(2 * keys.size());
  for (auto _ : state) {
    Rotate(layer, table, keys.data(), layer.ChannelsOf(true), backend);
    FromFloat(DType::kBf16, keys.data(), keys.size(), out.data(), backend);
  }
  state.SetBytesProcessed(state.iterations() * out.size());
}

BENCHMARK(EntropyDecode)->DenseRange(0, 2);
BENCHMARK(ReconstructGroup)
    ->ArgsProduct({{1, 2}, {2, 10, 30, 100}})
    ->Args({0, 10})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(Scatter)->DenseRange(0, 1)->Unit(benchmark::kMillisecond);
BENCHMARK(RotateAndRound)->DenseRange(0, 1);

}  // namespace
}  // namespace latentkv

BENCHMARK_MAIN();
