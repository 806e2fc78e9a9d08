// The daemon's process: flags, logs, signals.
#include <limits.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "server/options.h"
#include "server/server.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"
#include "storage/rocksdb_block_store.h"

namespace latentkv {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(5);

// Frames are megabytes that come and go, and page faults would be most of the
// time of reading them: with the heap in huge pages a fetch takes three
// quarters. glibc takes that from the environment before main, hence the second
// start; without it everything works. One arena, since glibc asks for huge
// pages in the first alone. What is free at the heap's end stays, up to what
// RocksDB holds unwritten (three buffers of 64 MiB) and the frames of some
// streams: given back, it is cleared anew for what is stored next, which took a
// third of storing.
void UseHugePages(char** argv) {
  char path[PATH_MAX] = "";
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) <= 0) return;
  if (std::getenv("GLIBC_TUNABLES") != nullptr) return;
  setenv("GLIBC_TUNABLES",
         "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
         "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold="
         "268435456",
         0);
  execv(path, argv);
}

// Blocks SIGTERM and SIGINT in this thread and those it will start, so that one
// sigwait gets them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "latentkvd: %s\n",
               std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

int Serve(const DaemonOptions& options, const sigset_t& signals) {
  auto store =
      RocksDbBlockStore::Open({.path = options.data,
                               .capacity_bytes = options.capacity_bytes,
                               .memory_tier_bytes = options.memory_bytes,
                               .clock = &SystemClock()});
  if (!store.ok()) return Fail(store.status());
  ServerConfig config;
  config.listen = options.listen;
  config.metrics_address = options.metrics_address;
  auto server = Server::Start(config, store->get());
  if (!server.ok()) return Fail(server.status());
  std::printf("latentkvd listening on %s\n",
              absl::StrJoin((*server)->addresses(), ",").c_str());
  std::fflush(stdout);

  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("stopping on {}", signal == SIGTERM ? "SIGTERM" : "SIGINT");
  (*server)->Stop(kStopGrace);
  server->reset();
  absl::Status closed = (*store)->Close();
  if (!closed.ok()) return Fail(closed);
  spdlog::info("stopped");
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  absl::StatusOr<DaemonOptions> options = ParseDaemonOptions(arguments);
  if (!options.ok()) return Fail(options.status());
  if (options->help) {
    std::fputs(DaemonHelp().c_str(), stdout);
    return 0;
  }
  if (options->version) {
    std::printf("latentkvd %s\n", kVersion);
    return 0;
  }
  const sigset_t signals = BlockStopSignals();
  spdlog::set_default_logger(spdlog::stderr_color_mt("latentkvd"));
  spdlog::set_level(spdlog::level::from_str(options->log_level));
  return Serve(*options, signals);
}

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  latentkv::UseHugePages(argv);
  // A file size limit is a full disk, not a reason to die.
  std::signal(SIGXFSZ, SIG_IGN);
  return latentkv::Main(std::vector<std::string>(argv + 1, argv + argc));
}
