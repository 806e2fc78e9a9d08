#include "transport/handoff_sender.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

// Between attempts, doubling.
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLastPause = absl::Milliseconds(320);
// Of frames streamed ahead of their acknowledgement: twice what gRPC receives
// ahead of whoever takes it (wire_call.cc).
constexpr uint64_t kWindowBytes = 16u << 20;
constexpr char kMethod[] = "/latentkv.v1.Peer/HandOff";

static_assert(v1::HandOffRequest::kFrameFieldNumber == kLargeField);

}  // namespace

absl::Status CheckHandoff(const HandoffPlan& plan) {
  if (plan.transfer.empty() || plan.transfer.size() > kTransferNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the name of a transfer has 1 to ", kTransferNameBytesMax, " bytes"));
  }
  if (plan.frames.empty() || plan.frames.size() > kTransferFramesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a transfer has 1 to ", kTransferFramesMax, " frames"));
  }
  for (const HandoffFrame& frame : plan.frames) {
    if (frame.data == nullptr || frame.bytes == 0 ||
        frame.bytes > kFrameBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("a frame has 1 to ", kFrameBytesMax, " bytes"));
    }
    if (frame.on_device && plan.link == nullptr) {
      return absl::InvalidArgumentError(
          "a frame on a device needs a link, which can copy it to the host");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<HandoffReport> HandoffSender::Run() {
  absl::Duration pause = kFirstPause;
  for (;;) {
    absl::Status status = Attempt();
    if (status.ok()) return report_;
    const bool again = refusal_.ok() && (absl::IsUnavailable(status) ||
                                         absl::IsNotFound(status));
    if (again && limits_.cancel != nullptr && limits_.cancel->cancelled())
      return absl::CancelledError("cancelled");
    if (absl::IsDeadlineExceeded(status) ||
        (again && absl::Now() + pause >= limits_.deadline)) {
      return absl::DeadlineExceededError(absl::StrCat(
          "transfer ", plan_.transfer, ": ", acknowledged_, " of ",
          plan_.frames.size(), " frames acknowledged; ", status.message()));
    }
    if (!again) return status;
    absl::SleepFor(pause);
    pause = std::min(2 * pause, kLastPause);
  }
}

absl::Status HandoffSender::Attempt() {
  answered_ = over_ = false;
  batch_bytes_max_ = 0;
  CancelToken stop;
  uint64_t hook = 0;
  if (limits_.cancel != nullptr)
    hook = limits_.cancel->Hook([&stop] { stop.Cancel(); });
  absl::Status status;
  absl::Status ended;
  {
    WireCall call(channel_, kMethod, {limits_.deadline, &stop});
    try {
      std::thread reader([&] {
        ReadAnswers(&call);
        ended = call.Finish();
      });
      status = Converse(&call);
      // Nobody cares any more how the stream ends.
      if (!status.ok() || Decided()) stop.Cancel();
      reader.join();
    } catch (const std::system_error& error) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("no thread for a transfer: ", error.what()));
    }
  }
  if (limits_.cancel != nullptr) limits_.cancel->Unhook(hook);
  if (!status.ok() || acknowledged_ == plan_.frames.size()) return status;
  if (!refusal_.ok()) return refusal_;
  return ended.ok() ? absl::UnavailableError("the receiver ended the stream")
                    : ended;
}

// Until all is acknowledged or the stream is over; an error is this side's.
absl::Status HandoffSender::Converse(WireCall* call) {
  v1::HandOffRequest head;
  head.mutable_begin()->set_transfer(plan_.transfer);
  head.mutable_begin()->set_frames(plan_.frames.size());
  head.mutable_begin()->set_generation(
      plan_.link == nullptr ? 0 : plan_.link->generation());
  call->Send(SerializeMessage(head));
  std::unique_lock lock(mutex_);
  Await(&lock, limits_.deadline, [this] { return answered_; });
  size_t sent = acknowledged_;
  uint64_t ahead_bytes = 0;  // Of frames [counted, sent).
  size_t counted = sent;
  while (!over_ && refusal_.ok() && acknowledged_ < plan_.frames.size()) {
    sent = std::max<size_t>(sent, acknowledged_);
    for (; counted < acknowledged_; ++counted)
      ahead_bytes -= std::min(ahead_bytes, plan_.frames[counted].bytes);
    const size_t batch =
        sent < plan_.frames.size() && LinkUsable() ? BatchCount(sent) : 0;
    if (sent == plan_.frames.size() || ahead_bytes >= kWindowBytes ||
        (batch > 0 && acknowledged_ < sent)) {
      Await(&lock, limits_.deadline,
            [this, before = acknowledged_] { return acknowledged_ > before; });
      continue;
    }
    lock.unlock();
    absl::Status status =
        batch > 0 ? SendBatch(call, sent, batch) : Stream(call, sent);
    if (!status.ok()) return status;
    lock.lock();
    if (batch == 0) ahead_bytes += plan_.frames[sent++].bytes;
  }
  lock.unlock();
  call->SendDone();
  return absl::OkStatus();
}

template <typename Condition>
bool HandoffSender::Await(std::unique_lock<std::mutex>* lock,
                          absl::Time deadline, Condition condition) {
  changed_.wait_until(*lock, absl::ToChronoTime(deadline),
                      [&] { return over_ || !refusal_.ok() || condition(); });
  return condition();
}

bool HandoffSender::Decided() {
  std::lock_guard lock(mutex_);
  return !refusal_.ok() || acknowledged_ == plan_.frames.size();
}

void HandoffSender::ReadAnswers(WireCall* call) {
  grpc::ByteBuffer message;
  v1::HandOffResponse response;
  while (call->Receive(&message)) {
    if (ParseMessage(message, &response)) {
      OnAnswer(response);
    } else {
      std::lock_guard lock(mutex_);
      refusal_ = absl::InternalError("the receiver's answer cannot be read");
      break;
    }
  }
  std::lock_guard lock(mutex_);
  over_ = true;
  if (batch_runs_) plan_.link->Abort();
  changed_.notify_all();
}

void HandoffSender::OnAnswer(const v1::HandOffResponse& response) {
  std::lock_guard lock(mutex_);
  if (response.next() > plan_.frames.size() ||
      (answered_ && response.next() < acknowledged_)) {
    refusal_ = absl::InternalError("the receiver acknowledged what it cannot");
  } else if (response.code() != 0) {
    refusal_ = absl::Status(static_cast<absl::StatusCode>(response.code()),
                            response.message());
  }
  if (refusal_.ok()) acknowledged_ = response.next();
  answered_ = true;
  batch_bytes_max_ = response.batch_bytes_max();
  if (batch_runs_ && (batch_bytes_max_ == 0 || !refusal_.ok()))
    plan_.link->Abort();
  changed_.notify_all();
}

bool HandoffSender::LinkUsable() const {
  return plan_.link != nullptr && batch_bytes_max_ > 0 &&
         plan_.link->generation() != 0;
}

size_t HandoffSender::BatchCount(size_t first) const {
  uint64_t left =
      std::min<uint64_t>(batch_bytes_max_, plan_.link->batch_bytes_max());
  size_t count = 0;
  while (first + count < plan_.frames.size() && count < kBatchFramesMax &&
         plan_.frames[first + count].bytes <= left) {
    left -= plan_.frames[first + count++].bytes;
  }
  return count;
}

absl::Status HandoffSender::SendBatch(WireCall* call, size_t first,
                                      size_t count) {
  const absl::Span<const HandoffFrame> frames =
      absl::MakeConstSpan(plan_.frames).subspan(first, count);
  v1::HandOffRequest head;
  head.set_first(first);
  for (const HandoffFrame& frame : frames) head.add_batch_bytes(frame.bytes);
  {
    std::lock_guard lock(mutex_);
    if (over_) return absl::OkStatus();
    batch_runs_ = true;
  }
  const absl::Time deadline =
      std::min(limits_.deadline, absl::Now() + plan_.batch_patience);
  absl::Status status = call->Send(SerializeMessage(head))
                            ? plan_.link->Send(frames, deadline)
                            : absl::UnavailableError("the receiver is gone");
  std::unique_lock lock(mutex_);
  if (status.ok()) {
    Await(&lock, deadline, [&] {
      return acknowledged_ >= first + count || batch_bytes_max_ == 0;
    });
  }
  batch_runs_ = false;
  if (acknowledged_ >= first + count) {
    report_.frames_over_link += count;
    return absl::OkStatus();
  }
  if (!refusal_.ok()) return absl::OkStatus();
  if (over_) {
    status = absl::UnavailableError("the receiver is gone");
  } else if (batch_bytes_max_ == 0) {
    status = absl::UnavailableError("the receiver gave the link up");
  } else if (status.ok()) {
    status =
        absl::DeadlineExceededError("a batch was not acknowledged in time");
  }
  lock.unlock();
  GiveUpLink(status);
  return absl::OkStatus();
}

absl::Status HandoffSender::Stream(WireCall* call, size_t index) {
  HandoffFrame frame = plan_.frames[index];
  if (frame.on_device || frame.owner == nullptr) {
    auto copy = std::make_shared<Bytes>(frame.bytes);
    if (frame.on_device) {
      absl::Status status = plan_.link->CopyToHost(frame, copy->data());
      if (!status.ok()) return status;
    } else {
      std::copy_n(frame.data, frame.bytes, copy->data());
    }
    frame = {copy->data(), copy->size(), false, copy};
  }
  v1::HandOffRequest head;
  head.set_first(index);
  call->Send(LayOutMessage(head, {frame.data, frame.bytes}, frame.owner));
  return absl::OkStatus();
}

void HandoffSender::GiveUpLink(const absl::Status& why) {
  plan_.link->Abort();
  if (report_.link_status.ok()) report_.link_status = why;
}

}  // namespace latentkv
