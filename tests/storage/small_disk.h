// A file system of some MiB that a test can fill.
#ifndef LATENTKV_TESTS_STORAGE_SMALL_DISK_H_
#define LATENTKV_TESTS_STORAGE_SMALL_DISK_H_

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "tests/storage/scratch_folder.h"

namespace latentkv {

// Mounts a tmpfs; without the right to, it first moves this process into a user
// namespace of its own, which only a process that has no threads yet can do.
// Two thirds of it are taken by ballast.
class SmallDisk {
 public:
  explicit SmallDisk(size_t mib) {
    mounted_ = Mount(mib) || (EnterNamespace() && Mount(mib));
    if (!mounted_) {
      reason_ = std::string(
                    "NOT RUN: this machine lets nobody mount a small tmpfs (") +
                std::strerror(errno) + ")";
      return;
    }
    std::ofstream(ballast_, std::ios::binary)
        << std::string((mib << 20) * 2 / 3, 'x');
  }
  ~SmallDisk() {
    if (mounted_) umount2(folder_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  const std::string& reason() const { return reason_; }  // Why it is not.
  const std::string& path() const { return folder_.path(); }
  void DropBallast() { std::filesystem::remove(ballast_); }

 private:
  bool Mount(size_t mib) {
    const std::string size = "size=" + std::to_string(mib) + "m";
    return mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, size.c_str()) ==
           0;
  }
  static bool EnterNamespace() {
    const uid_t user = getuid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
    std::ofstream("/proc/self/uid_map") << "0 " << user << " 1";
    return true;
  }

  ScratchFolder folder_;
  const std::string ballast_ = folder_.path() + "/ballast";
  bool mounted_ = false;
  std::string reason_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_STORAGE_SMALL_DISK_H_
