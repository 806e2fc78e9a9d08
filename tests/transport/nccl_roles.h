// What the ranks of nccl_device_test do, each in a process of its own.
#ifndef LATENTKV_TESTS_TRANSPORT_NCCL_ROLES_H_
#define LATENTKV_TESTS_TRANSPORT_NCCL_ROLES_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace latentkv {

// Of one operation of a rank whose peer ends, of connecting to one, and of a
// batch.
inline constexpr absl::Duration kOperationTime = absl::Seconds(3);
inline constexpr absl::Duration kConnectTime = absl::Seconds(10);
inline constexpr absl::Duration kBatchTime = absl::Seconds(3);

inline std::string MeetingAddress(const std::string& folder) {
  return absl::StrCat("unix:", folder, "/peer");
}
// Where a rank says when its call came back.
inline std::string FreedPath(const std::string& folder, uint32_t rank) {
  return absl::StrCat(folder, "/freed-", rank);
}

struct Role {
  std::string name;
  uint32_t rank;
  uint32_t ranks;
  std::string folder;
};

// What the process exits with: 0 if everything was as it should be; otherwise
// stderr says what was not.
int PlayRole(const Role& role);

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TRANSPORT_NCCL_ROLES_H_
