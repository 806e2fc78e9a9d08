#include "client/frame_sender.h"

#include <utility>

#include "absl/time/clock.h"

namespace latentkv {
namespace {

// Frames on their way: enough to keep the daemon busy while acknowledgements
// travel, few enough to lose with a stream.
constexpr size_t kUnacknowledgedMax = 16;
// A stream takes frames for the first half of its time, so that each has the
// other half to be acknowledged.
constexpr absl::Duration kStreamDuration = absl::Minutes(1);
// How long a stream without frames is kept.
constexpr absl::Duration kLinger = absl::Milliseconds(100);

}  // namespace

FrameSender::FrameSender(CacheChannel* channel, StoreLedger* ledger)
    : channel_(channel), ledger_(ledger), thread_([this] { Work(); }) {}

FrameSender::~FrameSender() {
  cancel_.Cancel();
  queue_.Close();
  thread_.join();
}

void FrameSender::Work() {
  while (queue_.Wait()) SendBurst();
}

void FrameSender::SendBurst() {
  const absl::Time began = absl::Now();
  std::unique_ptr<StoreStream> stream =
      channel_->OpenStore({began + kStreamDuration, &cancel_});
  while (true) {
    std::optional<StagedBlock> block;
    if (unacknowledged_.size() < kUnacknowledgedMax &&
        absl::Now() - began < kStreamDuration / 2) {
      block = queue_.Pop(absl::Now() + (unacknowledged_.empty()
                                            ? kLinger
                                            : absl::ZeroDuration()));
    }
    if (block.has_value()) {
      if (!Send(stream.get(), *std::move(block))) break;
    } else if (unacknowledged_.empty() || !ReadAck(stream.get())) {
      break;
    }
  }
  stream->SendDone();
  while (ReadAck(stream.get())) {
  }
  absl::Status status = stream->Finish();
  if (status.ok())
    status = absl::UnavailableError(
        "the daemon ended the stream without an acknowledgement");
  for (const StagedBlock& block : unacknowledged_)
    ledger_->Failed(block, status);
  unacknowledged_.clear();
}

bool FrameSender::Send(StoreStream* stream, StagedBlock block) {
  if (ledger_->Lost(block.behind)) {
    ledger_->Unreachable(block);
    return true;
  }
  unacknowledged_.push_back(std::move(block));
  const StagedBlock& last = unacknowledged_.back();
  return stream->Send({last.sequence, last.parent, false, last.frame});
}

bool FrameSender::ReadAck(StoreStream* stream) {
  StoreAck ack;
  if (!stream->ReadAck(&ack)) return false;
  if (unacknowledged_.empty() ||
      ack.sequence != unacknowledged_.front().sequence)
    return false;
  StagedBlock block = std::move(unacknowledged_.front());
  unacknowledged_.pop_front();
  if (ack.status.ok()) {
    ledger_->Stored(block);
  } else {
    ledger_->Failed(block, ack.status);
  }
  return true;
}

}  // namespace latentkv
