#include "transport/reception.h"

#include <chrono>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/bytes.h"
#include "latentkv/v1/peer.grpc.pb.h"
#include "transport/convert.h"

namespace latentkv {
namespace {

// To arrive, and the sender to end the stream upon it.
constexpr std::chrono::milliseconds kLastAnswer(100);
// How often a stream that waits for its turn looks for its end.
constexpr std::chrono::milliseconds kTurnInterval(20);

}  // namespace

absl::Status Reception::Await(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  const auto over = [this] { return closed_ || !refusal_.ok() || Complete(); };
  changed_.wait_until(lock, absl::ToChronoTime(deadline), over);
  if (Complete()) return absl::OkStatus();
  if (!refusal_.ok()) return refusal_;
  if (closed_) return absl::CancelledError("the reception was closed");
  return absl::DeadlineExceededError(
      frames_ == 0
          ? absl::StrCat("no sender of transfer ", plan_.transfer, " came")
          : absl::StrCat("transfer ", plan_.transfer, ": ", next_, " of ",
                         frames_, " frames came"));
}

uint64_t Reception::frames_complete() const {
  std::lock_guard lock(mutex_);
  return Complete() ? frames_ : 0;
}

uint64_t Reception::taken() const {
  std::lock_guard lock(mutex_);
  return next_;
}

uint64_t Reception::taken_over_link() const {
  std::lock_guard lock(mutex_);
  return over_link_;
}

absl::Status Reception::link_status() const {
  std::lock_guard lock(mutex_);
  return link_status_;
}

void Reception::Close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  changed_.notify_all();
  // Whoever sent the last frame is told so.
  if (Complete())
    changed_.wait_for(lock, kLastAnswer, [this] { return served_ == nullptr; });
  if (served_ != nullptr) served_->TryCancel();
  if (batch_runs_) plan_.link->Abort();
  changed_.wait(lock, [this] { return served_ == nullptr; });
}

absl::Status Reception::Admit(grpc::ServerContext* context,
                              const v1::HandOffBegin& begin) {
  std::unique_lock lock(mutex_);
  const uint64_t turn = ++last_turn_;
  changed_.notify_all();
  while (served_ != nullptr && !closed_ && turn == last_turn_ &&
         !context->IsCancelled()) {
    served_->TryCancel();
    if (batch_runs_) plan_.link->Abort();
    changed_.wait_for(lock, kTurnInterval);
  }
  if (closed_)
    return absl::NotFoundError("nobody expects this transfer any more");
  if (turn != last_turn_ || served_ != nullptr) {
    return absl::AbortedError("another sender of this transfer took over");
  }
  if (begin.frames() == 0 || begin.frames() > kTransferFramesMax ||
      begin.frames() < next_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a transfer of ", begin.frames(), " frames: it may have 1 to ",
        kTransferFramesMax, ", and the receiver has ", next_, " already"));
  }
  if (frames_ != 0 && frames_ != begin.frames()) {
    return absl::InvalidArgumentError(absl::StrCat("the transfer had ", frames_,
                                                   " frames before, and has ",
                                                   begin.frames(), " now"));
  }
  frames_ = begin.frames();
  generation_ = begin.generation();
  served_ = context;
  changed_.notify_all();
  return absl::OkStatus();
}

grpc::Status Reception::Serve(grpc::ServerContext* context,
                              HandoffStream* stream,
                              const v1::HandOffBegin& begin) {
  absl::Status status = Admit(context, begin);
  if (!status.ok()) return ToGrpc(status);
  {
    std::lock_guard lock(mutex_);
    status = refusal_;
  }
  if (status.ok()) Answer(stream, absl::OkStatus());
  v1::HandOffRequest request;
  while (status.ok() && stream->Read(&request)) {
    // More comes while a batch is on its way only if the sender has given that
    // up.
    EndBatch();
    if (request.has_begin()) {
      status = absl::InvalidArgumentError("a stream begins once");
    } else if (request.batch_bytes_size() > 0) {
      status = StartBatch(request, stream);
    } else {
      status = TakeStreamed(request);
      if (status.ok()) Answer(stream, absl::OkStatus());
    }
  }
  EndBatch();
  // In an answer, so that the sender can tell it from a stream that broke.
  if (!status.ok()) Answer(stream, status);
  std::lock_guard lock(mutex_);
  served_ = nullptr;
  changed_.notify_all();
  return ToGrpc(status);
}

absl::Status Reception::TakeStreamed(const v1::HandOffRequest& request) {
  const uint64_t next = taken();
  // It came over the link after all.
  if (request.first() < next) return absl::OkStatus();
  if (request.first() > next) {
    return absl::InvalidArgumentError(absl::StrCat(
        "frame ", request.first(), " came, and ", next, " is next"));
  }
  const ByteSpan bytes = AsBytes(request.frame());
  if (bytes.empty() || bytes.size() > kFrameBytesMax || next == frames_) {
    return absl::InvalidArgumentError(
        absl::StrCat("frame ", next, " of ", frames_, " has ", bytes.size(),
                     " bytes: 1 to ", kFrameBytesMax, " may be"));
  }
  return TakeFrame({bytes.data(), bytes.size(), false, nullptr}, false);
}

absl::Status Reception::CheckBatch(const v1::HandOffRequest& request) const {
  if (request.first() != next_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch from ", request.first(), " on, and ", next_, " is next"));
  }
  const size_t count = request.batch_bytes_size();
  if (count > kBatchFramesMax || count > frames_ - next_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch of ", count, " frames of the ", frames_ - next_, " left"));
  }
  uint64_t left = plan_.link == nullptr ? 0 : plan_.link->batch_bytes_max();
  for (const uint64_t bytes : request.batch_bytes()) {
    if (bytes == 0 || bytes > left || bytes > kFrameBytesMax)
      return absl::InvalidArgumentError("the batch is longer than was offered");
    left -= bytes;
  }
  return absl::OkStatus();
}

absl::Status Reception::StartBatch(const v1::HandOffRequest& request,
                                   HandoffStream* stream) {
  {
    std::lock_guard lock(mutex_);
    absl::Status status =
        plan_.link == nullptr
            ? absl::InvalidArgumentError("no batch was offered")
            : CheckBatch(request);
    if (!status.ok()) return status;
    batch_runs_ = true;
  }
  std::vector<uint64_t> frame_bytes(request.batch_bytes().begin(),
                                    request.batch_bytes().end());
  try {
    batch_ = std::thread([this, stream, frame_bytes = std::move(frame_bytes)] {
      TakeBatch(frame_bytes, stream);
    });
  } catch (const std::system_error& error) {
    GiveUpLink(absl::ResourceExhaustedError(
        absl::StrCat("no thread for a batch: ", error.what())));
    Answer(stream, absl::OkStatus());
  }
  return absl::OkStatus();
}

void Reception::TakeBatch(const std::vector<uint64_t>& frame_bytes,
                          HandoffStream* stream) {
  absl::StatusOr<std::vector<HandoffFrame>> frames =
      absl::CancelledError("the link was given up before");
  if (LinkBytesMax() > 0)
    frames =
        plan_.link->Receive(frame_bytes, absl::Now() + plan_.batch_patience);
  absl::Status refusal;
  if (frames.ok()) {
    for (size_t i = 0; i < frames->size() && refusal.ok(); ++i)
      refusal = TakeFrame((*frames)[i], true);
    // Before the answer, upon which the next message may come.
    std::lock_guard lock(mutex_);
    batch_runs_ = false;
  } else {
    GiveUpLink(frames.status());
  }
  Answer(stream, refusal);
}

void Reception::EndBatch() {
  {
    std::lock_guard lock(mutex_);
    if (batch_runs_) plan_.link->Abort();
  }
  if (batch_.joinable()) batch_.join();
}

absl::Status Reception::TakeFrame(const HandoffFrame& frame, bool over_link) {
  uint64_t index;
  {
    std::lock_guard lock(mutex_);
    if (!refusal_.ok()) return refusal_;
    if (closed_) return absl::CancelledError("the reception was closed");
    index = next_;
  }
  absl::Status status = plan_.sink->Take(index, frame);
  std::lock_guard lock(mutex_);
  if (status.ok()) {
    ++next_;
    if (over_link) ++over_link_;
  } else {
    refusal_ = status;
  }
  changed_.notify_all();
  return status;
}

void Reception::GiveUpLink(const absl::Status& why) {
  plan_.link->Abort();
  std::lock_guard lock(mutex_);
  if (link_status_.ok()) link_status_ = why;
  link_failed_ = true;
  batch_runs_ = false;
}

uint64_t Reception::LinkBytesMax() const {
  std::lock_guard lock(mutex_);
  const bool shared = plan_.link != nullptr && generation_ != 0 &&
                      plan_.link->generation() == generation_;
  return shared && !link_failed_ ? plan_.link->batch_bytes_max() : 0;
}

void Reception::Answer(HandoffStream* stream, const absl::Status& refusal) {
  v1::HandOffResponse response;
  response.set_next(taken());
  response.set_batch_bytes_max(LinkBytesMax());
  response.set_code(static_cast<uint32_t>(refusal.code()));
  response.set_message(std::string(refusal.message()));
  stream->Write(response);
}

}  // namespace latentkv
