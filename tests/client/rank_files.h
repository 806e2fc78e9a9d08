// How a test and its ranks, which are processes, tell each other how far they
// are.
#ifndef LATENTKV_TESTS_CLIENT_RANK_FILES_H_
#define LATENTKV_TESTS_CLIENT_RANK_FILES_H_

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace latentkv {

inline constexpr absl::Duration kForever = absl::Seconds(60);

class RankFiles {
 public:
  explicit RankFiles(std::string folder) : folder_(std::move(folder)) {}

  template <typename... Parts>
  std::string Path(const Parts&... parts) const {
    return absl::StrCat(folder_, "/", parts...);
  }
  // Whole at once, for who waits for it.
  void Write(const std::string& name, const std::string& text = "") const {
    const std::string part = absl::StrCat(Path(name), ".part");
    std::ofstream(part, std::ios::binary) << text;
    std::filesystem::rename(part, Path(name));
  }
  bool Has(const std::string& name) const {
    return std::filesystem::exists(Path(name));
  }
  bool Await(const std::string& name) const {
    for (const absl::Time end = absl::Now() + kForever; absl::Now() < end;
         absl::SleepFor(absl::Milliseconds(1))) {
      if (Has(name)) return true;
    }
    return false;
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(Path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file),
            std::istreambuf_iterator<char>()};
  }

 private:
  const std::string folder_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_RANK_FILES_H_
