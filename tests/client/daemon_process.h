// The daemon's executable, killed and started again on the same folder and
// port.
#ifndef LATENTKV_TESTS_CLIENT_DAEMON_PROCESS_H_
#define LATENTKV_TESTS_CLIENT_DAEMON_PROCESS_H_

#include <sys/types.h>

#include <string>

namespace latentkv {

class DaemonProcess {
 public:
  DaemonProcess();  // Started.
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  void Start();
  void Kill();  // -9; returns when it is dead.
  const std::string& address() const { return address_; }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_, address_ = "127.0.0.1:0";
  pid_t pid_ = -1;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_DAEMON_PROCESS_H_
