#include "tests/client/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "gtest/gtest.h"

namespace latentkv {
namespace {

constexpr char kReady[] = "latentkvd listening on ";

}  // namespace

DaemonProcess::DaemonProcess() {
  folder_ = ::testing::TempDir() + "latentkv-client-XXXXXX";
  if (mkdtemp(folder_.data()) == nullptr) std::abort();
  Start();
}

DaemonProcess::~DaemonProcess() {
  Kill();
  std::filesystem::remove_all(folder_);
}

void DaemonProcess::Start() {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const std::string data = "--data=" + folder_ + "/data",
                    listen = "--listen=" + address_;
  pid_ = fork();
  if (pid_ == 0) {
    dup2(ends[1], STDOUT_FILENO);
    execl(LATENTKVD_PATH, LATENTKVD_PATH, data.c_str(), listen.c_str(),
          "--capacity-bytes=1GiB", nullptr);
    _exit(127);
  }
  close(ends[1]);
  FILE* output = fdopen(ends[0], "r");
  char line[256] = "";
  ASSERT_NE(fgets(line, sizeof(line), output), nullptr);
  fclose(output);
  const std::string said(line);
  ASSERT_EQ(said.rfind(kReady, 0), 0u) << said;
  address_ =
      said.substr(sizeof(kReady) - 1, said.find('\n') - sizeof(kReady) + 1);
}

void DaemonProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace latentkv
