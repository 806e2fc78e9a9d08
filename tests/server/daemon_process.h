// The executable as a process, with its output.
#ifndef LATENTKV_TESTS_SERVER_DAEMON_PROCESS_H_
#define LATENTKV_TESTS_SERVER_DAEMON_PROCESS_H_

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace latentkv {

class DaemonProcess {
 public:
  // `in_child` runs in it before the executable; it may call what is safe after
  // a fork.
  explicit DaemonProcess(
      std::vector<std::string> arguments,
      const std::function<void()>& in_child = [] {}) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    arguments.insert(arguments.begin(), LATENTKVD_PATH);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      in_child();
      execv(LATENTKVD_PATH, pointers.data());
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;
  ~DaemonProcess() {
    if (pid_ > 0) End(SIGKILL);
    if (output_ != nullptr) fclose(output_);
  }
  // Waits until it serves; its address, empty when it ended instead.
  std::string Address() {
    const std::string start = "latentkvd listening on ";
    char line[4096];
    while (output_ != nullptr &&
           fgets(line, sizeof(line), output_) != nullptr) {
      const std::string text(line);
      if (text.rfind(start, 0) == 0)
        return text.substr(start.size(), text.find('\n') - start.size());
    }
    return "";
  }
  std::string ReadAll() {
    std::string all;
    char line[4096];
    while (output_ != nullptr && fgets(line, sizeof(line), output_) != nullptr)
      all += line;
    return all;
  }
  void Signal(int signal) { kill(pid_, signal); }
  // Sends `signal` (0: none) and waits; the status of waitpid. Shows what the
  // daemon says if that is not how it ends.
  int End(int signal) {
    int status = -1;
    const bool early = signal != 0 && waitpid(pid_, &status, WNOHANG) == pid_;
    if (signal != 0 && !early) kill(pid_, signal);
    if (!early) waitpid(pid_, &status, 0);
    pid_ = -1;
    const bool killed =
        !early && WIFSIGNALED(status) && WTERMSIG(status) == signal;
    if (signal != 0 && !killed && (early || status != 0)) {
      std::fprintf(stderr, "latentkvd ended %s with %d: %s\n",
                   early ? "early" : "", status, ReadAll().c_str());
    }
    return status;
  }

 private:
  pid_t pid_ = -1;
  FILE* output_ = nullptr;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_SERVER_DAEMON_PROCESS_H_
