// A folder of a test's own.
#ifndef LATENTKV_TESTS_STORAGE_SCRATCH_FOLDER_H_
#define LATENTKV_TESTS_STORAGE_SCRATCH_FOLDER_H_

#include <stdlib.h>

#include <filesystem>
#include <string>

namespace latentkv {

// Removed at the end.
class ScratchFolder {
 public:
  ScratchFolder()
      : path_((std::filesystem::temp_directory_path() / "latentkv-test-XXXXXX")
                  .string()) {
    if (mkdtemp(path_.data()) == nullptr) abort();
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_STORAGE_SCRATCH_FOLDER_H_
