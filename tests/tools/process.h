// Runs the executables under test.
#ifndef LATENTKV_TESTS_TOOLS_PROCESS_H_
#define LATENTKV_TESTS_TOOLS_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "core/bytes.h"
#include "transport/cache_channel.h"

namespace latentkv {

// A folder that goes when it does.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  // The path of a file with this content.
  std::string Write(const std::string& name, ByteSpan content) const;

 private:
  std::string path_;
};

struct Ran {
  int exit_status = -1;  // -1 if it did not exit by itself.
  std::string output, error;
};

// Runs latentkv to its end. `address` becomes LATENTKV_ADDRESS; empty: the
// variable is not set.
Ran RunCommand(const std::vector<std::string>& arguments,
               const std::string& address = "");

// A daemon on a port of its own; killed when it goes.
class TestDaemon {
 public:
  TestDaemon();
  ~TestDaemon();
  // Empty if it did not start.
  const std::string& address() const { return address_; }
  CacheChannel* channel() const { return channel_.get(); }

 private:
  ScratchFolder folder_;
  pid_t pid_ = -1;
  std::string address_;
  std::unique_ptr<CacheChannel> channel_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TOOLS_PROCESS_H_
