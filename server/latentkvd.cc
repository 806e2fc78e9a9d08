// The daemon's process: flags, logs, signals.
#include <csignal>
#include <cstdio>
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

// Blocks SIGTERM and SIGINT in this thread and those it will start, so that one sigwait gets them.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "latentkvd: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

int Serve(const DaemonOptions& options, const sigset_t& signals) {
  auto store = RocksDbBlockStore::Open({.path = options.data,
                                        .capacity_bytes = options.capacity_bytes,
                                        .memory_tier_bytes = options.memory_bytes,
                                        .clock = &SystemClock()});
  if (!store.ok()) return Fail(store.status());
  ServerConfig config;
  config.listen = options.listen;
  config.metrics_address = options.metrics_address;
  auto server = Server::Start(config, store->get());
  if (!server.ok()) return Fail(server.status());
  std::printf("latentkvd listening on %s\n", absl::StrJoin((*server)->addresses(), ",").c_str());
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

int main(int argc, char** argv) { return latentkv::Main(std::vector<std::string>(argv + 1, argv + argc)); }
