// Where the ranks of a group meet, and are told the id that rank 0 brought.
#ifndef LATENTKV_TRANSPORT_MEETING_PLACE_H_
#define LATENTKV_TRANSPORT_MEETING_PLACE_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/bytes.h"

namespace latentkv {

inline constexpr size_t kGroupNameBytesMax = 256;
// Eight hosts of eight devices.
inline constexpr uint32_t kRanksMax = 64;
// Waiting at once, a thread each: half of a server's threads.
inline constexpr uint32_t kJoinsMax = 2 * kRanksMax;
inline constexpr size_t kGroupIdBytesMax = 128;  // ncclUniqueId.

struct GroupPlace {
  std::string group;   // 1 to kGroupNameBytesMax bytes.
  uint32_t rank = 0;   // Below ranks.
  uint32_t ranks = 0;  // 2 to kRanksMax.
};

struct Meeting {
  // Rises from meeting to meeting of a place, also over its restarts; never 0.
  uint64_t generation = 0;
  // Whoever has it can join the ranks: for no log and no message.
  Bytes id;
};

// InvalidArgument says what is wrong. `id` [1..kGroupIdBytesMax] comes from
// rank 0 and from no other.
absl::Status CheckJoin(const GroupPlace& place, ByteSpan id);

// Any thread.
class MeetingPlace {
 public:
  // Returns when all ranks of the group wait here at once; the next to come
  // begin a new meeting. Of two that come as one rank the later stays, so that
  // a process that was killed and started again is not in its own way; the
  // earlier is Aborted. Others: InvalidArgument, ResourceExhausted,
  // DeadlineExceeded, and Cancelled soon after `gone` says so.
  absl::StatusOr<Meeting> Join(const GroupPlace& place, ByteSpan id,
                               absl::Time deadline,
                               const std::function<bool()>& gone);

 private:
  struct Gathering;
  absl::StatusOr<Meeting> Await(const std::shared_ptr<Gathering>& gathering,
                                const GroupPlace& place, uint64_t ticket,
                                absl::Time deadline,
                                const std::function<bool()>& gone,
                                std::unique_lock<std::mutex>* lock);

  std::mutex mutex_;
  std::condition_variable changed_;
  // Incomplete ones, by group.
  std::map<std::string, std::shared_ptr<Gathering>> gatherings_;
  uint32_t waiting_ = 0;
  uint64_t last_ticket_ = 0;
  uint64_t last_generation_ = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_MEETING_PLACE_H_
