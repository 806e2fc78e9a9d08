#include "tests/tools/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

// Starts `program` with standard output and error on the descriptors given; its
// id, or -1.
pid_t Spawn(std::string program, std::vector<std::string> arguments,
            std::vector<std::string> variables, int output, int error) {
  std::vector<char*> words{program.data()}, environment;
  for (std::string& argument : arguments) words.push_back(argument.data());
  words.push_back(nullptr);
  for (std::string& variable : variables)
    environment.push_back(variable.data());
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "LATENTKV_ADDRESS="))
      environment.push_back(*variable);
  }
  environment.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, error, STDERR_FILENO);
  pid_t pid = -1;
  const int failed = posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                 words.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  return failed ? -1 : pid;
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

ScratchFolder::ScratchFolder() {
  std::string pattern = ::testing::TempDir() + "latentkv-tools-XXXXXX";
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  path_ = pattern;
}

ScratchFolder::~ScratchFolder() { std::filesystem::remove_all(path_); }

std::string ScratchFolder::Write(const std::string& name,
                                 ByteSpan content) const {
  std::ofstream(Path(name), std::ios::binary)
      .write(AsText(content).data(), content.size());
  return Path(name);
}

Ran RunCommand(const std::vector<std::string>& arguments,
               const std::string& address) {
  ScratchFolder folder;
  // Files and not pipes: nothing has to be read while it runs.
  const int output =
      open(folder.Path("out").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  const int error =
      open(folder.Path("err").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  std::vector<std::string> variables;
  if (!address.empty()) variables.push_back("LATENTKV_ADDRESS=" + address);
  const pid_t pid = Spawn(LATENTKV_PATH, arguments, variables, output, error);
  close(output);
  close(error);
  Ran ran;
  int status = 0;
  if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status))
    ran.exit_status = WEXITSTATUS(status);
  ran.output = ReadText(folder.Path("out"));
  ran.error = ReadText(folder.Path("err"));
  return ran;
}

TestDaemon::TestDaemon() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  pid_ = Spawn(LATENTKVD_PATH,
               {"--data", folder_.Path("data"), "--listen", "127.0.0.1:0",
                "--capacity-bytes", "1GiB"},
               {}, ends[1], STDERR_FILENO);
  close(ends[1]);
  FILE* output = fdopen(ends[0], "r");
  char line[256] = "";
  absl::string_view said =
      fgets(line, sizeof(line), output) != nullptr ? line : "";
  fclose(output);
  if (!absl::ConsumePrefix(&said, "latentkvd listening on ")) return;
  address_ = std::string(absl::StripSuffix(said, "\n"));
  channel_ = *MakeGrpcChannel(address_);
}

TestDaemon::~TestDaemon() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

}  // namespace latentkv
