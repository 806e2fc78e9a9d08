#include "transport/meeting_place.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace latentkv {
namespace {

// How often a waiting rank is asked for.
constexpr std::chrono::milliseconds kGoneInterval(50);

}  // namespace

struct MeetingPlace::Gathering {
  std::vector<uint64_t> tickets;  // Who waits as each rank; 0 for nobody.
  Meeting meeting;                // With a generation once all have come.
};

absl::Status CheckJoin(const GroupPlace& place, ByteSpan id) {
  if (place.group.empty() || place.group.size() > kGroupNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the name of a group has 1 to ", kGroupNameBytesMax, " bytes"));
  }
  if (place.ranks < 2 || place.ranks > kRanksMax || place.rank >= place.ranks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", place.rank, " of ", place.ranks, ": a group has 2 to ",
        kRanksMax, " ranks, the first of which is 0"));
  }
  if (place.rank == 0 ? id.empty() || id.size() > kGroupIdBytesMax
                      : !id.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("an id of 1 to ", kGroupIdBytesMax,
                     " bytes comes from rank 0, and from no other"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Meeting> MeetingPlace::Join(const GroupPlace& place, ByteSpan id,
                                           absl::Time deadline,
                                           const std::function<bool()>& gone) {
  absl::Status status = CheckJoin(place, id);
  if (!status.ok()) return status;
  std::unique_lock lock(mutex_);
  if (waiting_ == kJoinsMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kJoinsMax, " ranks are waiting already"));
  }
  std::shared_ptr<Gathering>& open = gatherings_[place.group];
  if (open == nullptr) {
    open = std::make_shared<Gathering>();
    open->tickets.resize(place.ranks);
  }
  const std::shared_ptr<Gathering> gathering = open;
  if (gathering->tickets.size() != place.ranks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", place.rank, " comes for a group of ", place.ranks,
        ", those who wait for one of ", gathering->tickets.size()));
  }
  const uint64_t ticket = ++last_ticket_;
  gathering->tickets[place.rank] = ticket;
  if (place.rank == 0) gathering->meeting.id.assign(id.begin(), id.end());
  if (std::find(gathering->tickets.begin(), gathering->tickets.end(), 0) ==
      gathering->tickets.end()) {
    // From the clock, so that a place that was started again does not repeat
    // itself.
    last_generation_ = std::max<uint64_t>(
        last_generation_ + 1,
        std::max<int64_t>(absl::ToUnixMicros(absl::Now()), 1));
    gathering->meeting.generation = last_generation_;
    gatherings_.erase(place.group);
  }
  changed_.notify_all();
  ++waiting_;
  absl::StatusOr<Meeting> meeting =
      Await(gathering, place, ticket, deadline, gone, &lock);
  --waiting_;
  return meeting;
}

absl::StatusOr<Meeting> MeetingPlace::Await(
    const std::shared_ptr<Gathering>& gathering, const GroupPlace& place,
    uint64_t ticket, absl::Time deadline, const std::function<bool()>& gone,
    std::unique_lock<std::mutex>* lock) {
  std::vector<uint64_t>& tickets = gathering->tickets;
  absl::Status status;
  for (;;) {
    if (tickets[place.rank] != ticket) {
      return absl::AbortedError(
          absl::StrCat("another process came as rank ", place.rank));
    }
    if (gathering->meeting.generation != 0) return gathering->meeting;
    if (gone()) status = absl::CancelledError("the rank is gone");
    if (absl::Now() >= deadline) {
      const auto missing = std::count(tickets.begin(), tickets.end(), 0);
      status = absl::DeadlineExceededError(
          absl::StrCat(missing, " of ", place.ranks, " ranks did not come"));
    }
    if (!status.ok()) break;
    const auto wake = std::chrono::system_clock::now() + kGoneInterval;
    changed_.wait_until(*lock, std::min(wake, absl::ToChronoTime(deadline)));
  }
  tickets[place.rank] = 0;
  if (std::count(tickets.begin(), tickets.end(), 0) ==
      static_cast<std::ptrdiff_t>(tickets.size())) {
    gatherings_.erase(place.group);
  }
  return status;
}

}  // namespace latentkv
