// A rank as a process: this program once more, told which role to play.
#ifndef LATENTKV_TESTS_TRANSPORT_RANK_PROCESS_H_
#define LATENTKV_TESTS_TRANSPORT_RANK_PROCESS_H_

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace latentkv {

// Killed at the end if it still runs.
class RankProcess {
 public:
  // Each process is a host of its own to NCCL, so that several may share a
  // device: correctness, not speed.
  RankProcess(const std::string& role, uint32_t rank, uint32_t ranks,
              const std::string& folder) {
    std::vector<std::string> arguments = {
        "/proc/self/exe",    "rank", role, absl::StrCat(rank),
        absl::StrCat(ranks), folder};
    // Multicast over NVLink stays off wherever this runs: it needs what a
    // shared host may not have to give.
    std::vector<std::string> variables = {
        absl::StrCat("NCCL_HOSTID=", role, "-", rank, "-", getpid()),
        "NCCL_SOCKET_IFNAME=lo",
        "NCCL_NVLS_ENABLE=0",
        "NCCL_IB_DISABLE=1",
        "NCCL_P2P_DISABLE=1",
        "NCCL_SHM_DISABLE=1"};
    for (char** variable = environ; *variable != nullptr; ++variable)
      variables.emplace_back(*variable);
    std::vector<char*> argv, envp;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    for (std::string& variable : variables) envp.push_back(variable.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    if (posix_spawn(&pid_, "/proc/self/exe", nullptr, nullptr, argv.data(),
                    envp.data()) != 0)
      pid_ = 0;
  }
  ~RankProcess() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  RankProcess(const RankProcess&) = delete;
  RankProcess& operator=(const RankProcess&) = delete;

  // "exit 0", "signal 9", "stopped", or "runs" if it still does at the
  // deadline.
  std::string Ended(absl::Time deadline) {
    while (pid_ > 0) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG | WUNTRACED) == pid_) {
        ended_at_ = absl::Now();
        if (WIFSTOPPED(status)) return "stopped";
        pid_ = 0;
        return WIFEXITED(status) ? absl::StrCat("exit ", WEXITSTATUS(status))
                                 : absl::StrCat("signal ", WTERMSIG(status));
      }
      if (absl::Now() >= deadline) return "runs";
      absl::SleepFor(absl::Microseconds(200));
    }
    return "was not started";
  }
  void Kill() { kill(pid_, SIGKILL); }
  absl::Time ended_at() const { return ended_at_; }

 private:
  pid_t pid_ = 0;
  absl::Time ended_at_;
};

// Moments that ranks leave for the test to compare; all processes have one
// clock.
inline void WriteMoment(const std::string& path) {
  std::ofstream(path) << absl::ToUnixMicros(absl::Now());
}
inline absl::Time ReadMoment(const std::string& path) {
  int64_t micros = 0;
  return std::ifstream(path) >> micros ? absl::FromUnixMicros(micros)
                                       : absl::InfiniteFuture();
}

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TRANSPORT_RANK_PROCESS_H_
