#include "client/c/whole_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

absl::Status WriteAll(int file, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, "cannot write");
    bytes.remove_prefix(written);
  }
  if (fsync(file) != 0) return absl::ErrnoToStatus(errno, "cannot sync");
  // mkstemp lets nobody else read; a basis is shared.
  if (fchmod(file, 0644) != 0)
    return absl::ErrnoToStatus(errno, "cannot set the mode");
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteWholeFile(const std::string& path, ByteSpan bytes) {
  std::string beside = path + ".XXXXXX";
  const int file = mkostemp(beside.data(), O_CLOEXEC);
  if (file < 0)
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot create a file beside ", path));
  absl::Status status = WriteAll(file, bytes);
  close(file);
  if (status.ok() && std::rename(beside.c_str(), path.c_str()) != 0)
    status = absl::ErrnoToStatus(errno, "cannot rename");
  if (status.ok()) return status;
  unlink(beside.c_str());
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

}  // namespace latentkv
