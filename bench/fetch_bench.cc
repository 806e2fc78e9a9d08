// Lookup and Fetch of a prefix of 48 blocks from a daemon that was started just
// now: connecting included, frames in the page cache but not in the memory
// tier.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "core/frame.h"
#include "core/limits.h"
#include "storage/rocksdb_block_store.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr uint32_t kBlocks = 48;  // 3072 tokens.

Digest KeyOf(uint32_t block) {
  return Sha256({AsBytes("block " + std::to_string(block))});
}

Bytes MakeFrame(uint32_t block, uint32_t section_count, size_t frame_bytes) {
  FrameHeader header;
  header.key = KeyOf(block);
  header.first_token = block * kBlockTokens;
  header.token_count = kBlockTokens;
  uint64_t state = block + 1;
  std::vector<Bytes> sections(section_count,
                              Bytes(frame_bytes / section_count));
  for (Bytes& section : sections) {
    for (uint8_t& byte : section)
      byte =
          (state = state * 6364136223846793005u + 1442695040888963407u) >> 56;
  }
  return WriteFrame(header, sections).value();
}

// A folder of blocks, and the daemon on it.
class Fixture {
 public:
  Fixture(uint32_t section_count, size_t frame_bytes) {
    if (mkdtemp(path_.data()) == nullptr) abort();
    auto store = RocksDbBlockStore::Open({.path = path_ + "/data",
                                          .capacity_bytes = uint64_t{1} << 30})
                     .value();
    for (uint32_t block = 0; block < kBlocks; ++block) {
      if (!store->Put(MakeFrame(block, section_count, frame_bytes), {}, false)
               .ok())
        abort();
    }
  }
  ~Fixture() { std::filesystem::remove_all(path_); }

  // Starts it on a port of its choice or a unix socket; the address.
  std::string Start(bool local) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) abort();
    const std::string listen =
        "--listen=" + (local ? "unix:" + path_ + "/socket" : "127.0.0.1:0");
    const std::string data = "--data=" + path_ + "/data";
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      execl(LATENTKVD_PATH, LATENTKVD_PATH, data.c_str(), listen.c_str(),
            "--log-level=warn", nullptr);
      _exit(127);
    }
    close(ends[1]);
    FILE* output = fdopen(ends[0], "r");
    char line[256] = "", address[256] = "";
    if (fgets(line, sizeof(line), output) == nullptr) abort();
    if (std::sscanf(line, "latentkvd listening on %255s", address) != 1)
      abort();
    fclose(output);
    return address;
  }
  void Stop() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  std::string path_ =
      (std::filesystem::temp_directory_path() / "latentkv-bench-XXXXXX")
          .string();
  pid_t pid_ = -1;
};

// Arguments: kB of a frame, sections of a frame, 1 for a unix socket.
void FetchFromAFreshDaemon(benchmark::State& state) {
  Fixture fixture(state.range(1), state.range(0) * 1000);
  uint64_t bytes = 0;
  for (auto _ : state) {
    const std::string address = fixture.Start(state.range(2) == 1);
    const absl::Time start = absl::Now();
    std::unique_ptr<CacheChannel> channel = MakeGrpcChannel(address).value();
    LookupQuery query;
    for (uint32_t block = 0; block < kBlocks; ++block)
      query.keys.push_back(KeyOf(block));
    query.lease_ms = 10000;
    const CallLimits limits = CallLimits::In(absl::Seconds(10));
    absl::StatusOr<LookupAnswer> answer = channel->Lookup(query, limits);
    if (!answer.ok() || answer->records.size() != kBlocks)
      state.SkipWithError("not found");
    uint64_t fetched = 0;
    absl::Status status = channel->Fetch(
        answer->records, answer->lease_id, limits,
        [&](const FetchedSection& section) {
          fetched += section.header.size() + section.payload.size();
          return !section.missing;
        });
    if (!status.ok() || fetched < size_t{kBlocks} * state.range(0) * 990)
      state.SkipWithError("not fetched");
    state.SetIterationTime(absl::ToDoubleSeconds(absl::Now() - start));
    bytes += fetched;
    channel.reset();
    fixture.Stop();
  }
  state.SetBytesProcessed(bytes);
}
BENCHMARK(FetchFromAFreshDaemon)
    ->ArgNames({"kB", "sections", "unix"})
    ->ArgsProduct({{1000}, {30}, {0, 1}})
    ->ArgsProduct({{40}, {6}, {0, 1}})
    ->UseManualTime()
    ->Iterations(1)
    ->Repetitions(15)
    ->ReportAggregatesOnly()
    ->ComputeStatistics("min",
                        [](const std::vector<double>& times) {
                          return *std::min_element(times.begin(), times.end());
                        })
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace latentkv

BENCHMARK_MAIN();
