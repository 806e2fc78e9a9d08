// Through the client: 3072 tokens of SmolLM2-135M's geometry between a daemon
// and pages as vLLM's CPU backend has them. A restore lasts from the call of
// Load to the last page, frames being in the page cache and not in the daemon's
// memory tier; a store until the last acknowledgement. Everything is in this
// process, so that cpu_ms is that of both ends.
#include <benchmark/benchmark.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>

#include "absl/time/clock.h"
#include "client/client.h"
#include "core/limits.h"
#include "server/server.h"
#include "storage/rocksdb_block_store.h"

namespace latentkv {
namespace {

constexpr uint64_t kTokens = 3072;
constexpr uint32_t kLayers = 30, kHeads = 3, kDims = 64, kPageTokens = 128;
constexpr uint64_t kPages = kTokens / kPageTokens;
constexpr absl::Duration kPatience = absl::Seconds(60);

ClientOptions Options(std::string address) {
  LayerGeometry layer;
  layer.kv_heads = kHeads;
  layer.head_dim = layer.rotary_dim = kDims;
  layer.pairing = RotaryPairing::kHalves;
  for (uint32_t i = 0; i < kDims / 2; ++i)
    layer.inverse_frequencies.push_back(std::pow(1e5, -2.0 * i / kDims));
  ClientOptions options;
  options.address = std::move(address);
  options.scope.model.bytes[0] = 1;
  options.geometry.layers.assign(kLayers, layer);
  return options;
}

// Keys transposed, then values, in each page and head.
class EnginePages {
 public:
  EnginePages()
      : memory_(kLayers, std::vector<uint16_t>(kPages * kHeads * kPageTokens *
                                               2 * kDims)) {}
  void Compute() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::vector<uint16_t>& layer : memory_) {
      for (uint16_t& value : layer) {
        const float computed = normal(random);
        std::memcpy(&value, reinterpret_cast<const uint8_t*>(&computed) + 2,
                    sizeof(value));
      }
    }
  }
  PagedCache cache() {
    constexpr int64_t kArea = kPageTokens * 2 * kDims * sizeof(uint16_t);
    PagedCache cache{{}, kPageTokens, kPages};
    for (std::vector<uint16_t>& layer : memory_) {
      auto* base = reinterpret_cast<uint8_t*>(layer.data());
      cache.layers.push_back({base,
                              base + kArea / 2,
                              {kHeads * kArea, 2, kArea, kPageTokens * 2},
                              {kHeads * kArea, kDims * 2, kArea, 2}});
    }
    return cache;
  }
  const std::vector<std::vector<uint16_t>>& memory() const { return memory_; }

 private:
  std::vector<std::vector<uint16_t>> memory_;
};

// Of all threads, client's and daemon's.
double CpuMilliseconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
         (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e3;
}

// A daemon that holds the prompt, and a client on it.
class Fixture {
 public:
  Fixture() {
    if (mkdtemp(folder_.data()) == nullptr) abort();
    store_ = RocksDbBlockStore::Open({.path = folder_ + "/data",
                                      .capacity_bytes = uint64_t{1} << 30})
                 .value();
    ServerConfig config;
    config.listen = {"127.0.0.1:0"};
    server_ = Server::Start(config, store_.get()).value();
    client_ = Client::Open(Options(server_->addresses()[0])).value();
    std::iota(tokens_.begin(), tokens_.end(), 0);
    std::iota(page_ids_.begin(), page_ids_.end(), 0);
    pages_.Compute();
    computed_ = pages_.memory();
    if (!client_->RegisterPages(pages_.cache()).ok()) abort();
    Store("")->Wait(-1, kPatience).IgnoreError();
  }
  ~Fixture() {
    client_.reset();
    server_.reset();
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  std::unique_ptr<Job> Load() {
    return client_
        ->Load({tokens_, {}, ""}, 0, kTokens, page_ids_,
               absl::Now() + kPatience)
        .value();
  }
  // A chain of its own for each salt.
  std::unique_ptr<Job> Store(std::string salt) {
    return client_->Store({tokens_, {}, std::move(salt)}, 0, kTokens, page_ids_)
        .value();
  }
  bool Restored() const { return pages_.memory() == computed_; }

 private:
  std::string folder_ =
      (std::filesystem::temp_directory_path() / "latentkv-bench-XXXXXX")
          .string();
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
  EnginePages pages_;
  std::vector<std::vector<uint16_t>> computed_;
  std::vector<uint32_t> tokens_ = std::vector<uint32_t>(kTokens);
  std::vector<uint64_t> page_ids_ = std::vector<uint64_t>(kPages);
};

void RestoreExact(benchmark::State& state) {
  static Fixture fixture;
  double first_layer_ms = 0, cpu_ms = -CpuMilliseconds();
  TransferResult result;
  for (auto _ : state) {
    const absl::Time start = absl::Now();
    std::unique_ptr<Job> job = fixture.Load();
    job->Wait(0, kPatience).IgnoreError();
    first_layer_ms += absl::ToDoubleMilliseconds(absl::Now() - start);
    result = job->Wait(-1, kPatience).value();
    state.SetIterationTime(absl::ToDoubleSeconds(absl::Now() - start));
  }
  state.counters["cpu_ms"] = (cpu_ms + CpuMilliseconds()) / state.iterations();
  state.counters["first_layer_ms"] = first_layer_ms / state.iterations();
  state.counters["frame_bytes"] = result.frame_bytes;
  if (result.token_count != kTokens || !fixture.Restored())
    state.SkipWithError("not restored");
}

void StoreExact(benchmark::State& state) {
  static Fixture fixture;
  static int chain = 0;
  double gather_ms = 0, cpu_ms = -CpuMilliseconds();
  TransferResult result;
  for (auto _ : state) {
    const absl::Time start = absl::Now();
    std::unique_ptr<Job> job = fixture.Store(std::to_string(++chain));
    gather_ms += absl::ToDoubleMilliseconds(absl::Now() - start);
    result = job->Wait(-1, kPatience).value();
    state.SetIterationTime(absl::ToDoubleSeconds(absl::Now() - start));
  }
  state.counters["cpu_ms"] = (cpu_ms + CpuMilliseconds()) / state.iterations();
  state.counters["gather_ms"] = gather_ms / state.iterations();
  if (result.token_count != kTokens) state.SkipWithError("not stored");
}

double Smallest(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

void Repeated(benchmark::internal::Benchmark* benchmark) {
  benchmark->UseManualTime()
      ->Iterations(1)
      ->Repetitions(25)
      ->ReportAggregatesOnly();
  benchmark->ComputeStatistics("min", Smallest)->Unit(benchmark::kMillisecond);
}
BENCHMARK(RestoreExact)->Apply(Repeated);
BENCHMARK(StoreExact)->Apply(Repeated);

}  // namespace
}  // namespace latentkv

BENCHMARK_MAIN();
