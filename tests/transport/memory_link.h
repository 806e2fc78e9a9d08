// Two ends of a link in one process, which fail as they are told: what of NCCL
// the handoff sees.
#ifndef LATENTKV_TESTS_TRANSPORT_MEMORY_LINK_H_
#define LATENTKV_TESTS_TRANSPORT_MEMORY_LINK_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "core/bytes.h"
#include "transport/handoff.h"

namespace latentkv {

enum class LinkFault {
  kNone,
  kSendFails,     // At once, on one side; the other hears nothing.
  kReceiveFails,  // Likewise.
  kStalls,        // Nothing arrives, and nobody is told.
  kLate,          // Arrives, but whoever sent it is told that it did not.
};

// The fault shows at the batch numbered `at`, from 0.
struct MemoryWire {
  LinkFault fault = LinkFault::kNone;
  int at = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<Bytes>> batches;
};

// "Device" memory is memory.
class MemoryLink : public DeviceLink {
 public:
  MemoryLink(MemoryWire* wire, uint64_t generation, size_t batch_bytes_max)
      : wire_(wire),
        generation_(generation),
        batch_bytes_max_(batch_bytes_max) {}

  uint64_t generation() const override {
    std::lock_guard lock(wire_->mutex);
    return aborted_ ? 0 : generation_;
  }
  size_t batch_bytes_max() const override { return batch_bytes_max_; }

  absl::Status Send(absl::Span<const HandoffFrame> frames,
                    absl::Time deadline) override {
    std::unique_lock lock(wire_->mutex);
    const LinkFault fault =
        calls_++ == wire_->at ? wire_->fault : LinkFault::kNone;
    if (fault == LinkFault::kSendFails)
      return Fail(absl::UnavailableError("the other end died"));
    if (fault == LinkFault::kStalls) return Stall(&lock, deadline);
    std::vector<Bytes> batch;
    for (const HandoffFrame& frame : frames)
      batch.emplace_back(frame.data, frame.data + frame.bytes);
    wire_->batches.push_back(std::move(batch));
    wire_->changed.notify_all();
    if (fault == LinkFault::kLate)
      return Fail(absl::DeadlineExceededError("late"));
    return aborted_ ? absl::CancelledError("aborted") : absl::OkStatus();
  }

  absl::StatusOr<std::vector<HandoffFrame>> Receive(
      absl::Span<const uint64_t> frame_bytes, absl::Time deadline) override {
    std::unique_lock lock(wire_->mutex);
    const LinkFault fault =
        calls_++ == wire_->at ? wire_->fault : LinkFault::kNone;
    if (fault == LinkFault::kReceiveFails)
      return Fail(absl::UnavailableError("the other end died"));
    const auto come = [this] { return aborted_ || !wire_->batches.empty(); };
    if (!wire_->changed.wait_until(lock, absl::ToChronoTime(deadline), come)) {
      return Fail(absl::DeadlineExceededError("nothing came"));
    }
    if (wire_->batches.empty()) return absl::CancelledError("aborted");
    received_ = std::move(wire_->batches.front());
    wire_->batches.pop_front();
    std::vector<HandoffFrame> frames;
    for (size_t i = 0; i < received_.size(); ++i) {
      if (received_.size() != frame_bytes.size() ||
          received_[i].size() != frame_bytes[i]) {
        return Fail(absl::InternalError("the ends disagree on the lengths"));
      }
      frames.push_back(
          {received_[i].data(), received_[i].size(), true, nullptr});
    }
    return frames;
  }

  absl::Status CopyToHost(const HandoffFrame& frame, uint8_t* out) override {
    std::copy_n(frame.data, frame.bytes, out);
    return absl::OkStatus();
  }
  void Abort() override {
    std::lock_guard lock(wire_->mutex);
    aborted_ = true;
    wire_->changed.notify_all();
  }

 private:
  absl::Status Fail(absl::Status status) {
    aborted_ = true;
    return status;
  }
  absl::Status Stall(std::unique_lock<std::mutex>* lock, absl::Time deadline) {
    const bool told = wire_->changed.wait_until(
        *lock, absl::ToChronoTime(deadline), [this] { return aborted_; });
    return Fail(told ? absl::CancelledError("aborted")
                     : absl::DeadlineExceededError("stalled"));
  }

  MemoryWire* const wire_;
  const uint64_t generation_;
  const size_t batch_bytes_max_;
  std::vector<Bytes> received_;
  bool aborted_ = false;  // Under the wire's mutex.
  int calls_ = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TRANSPORT_MEMORY_LINK_H_
