#include "tests/client/wrapped_channel.h"

#include <chrono>
#include <utility>

namespace latentkv {
namespace {

class WrappedStream : public StoreStream {
 public:
  WrappedStream(const WrappedChannel* channel,
                std::unique_ptr<StoreStream> inner, const CallLimits& limits)
      : channel_(channel), inner_(std::move(inner)), limits_(limits) {}

  bool Send(const StoreItem& item) override {
    if (channel_->on_send) channel_->on_send(item, limits_);
    return inner_->Send(item);
  }
  void SendDone() override { inner_->SendDone(); }
  bool ReadAck(StoreAck* ack) override {
    if (!inner_->ReadAck(ack)) return false;
    if (channel_->on_ack) channel_->on_ack(ack);
    return true;
  }
  absl::Status Finish() override { return inner_->Finish(); }

 private:
  const WrappedChannel* channel_;
  std::unique_ptr<StoreStream> inner_;
  CallLimits limits_;
};

}  // namespace

void Gate::Wait(const CancelToken* cancel) {
  std::unique_lock<std::mutex> lock(mutex_);
  visited_ = true;
  changed_.notify_all();
  while (!open_ && (cancel == nullptr || !cancel->cancelled())) {
    changed_.wait_until(
        lock, std::chrono::system_clock::now() + std::chrono::milliseconds(5));
  }
}

void Gate::Open() {
  std::lock_guard<std::mutex> lock(mutex_);
  open_ = true;
  changed_.notify_all();
}

void Gate::AwaitVisitor() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return visited_; });
}

absl::StatusOr<LookupAnswer> WrappedChannel::Lookup(const LookupQuery& query,
                                                    const CallLimits& limits) {
  LookupQuery changed = query;
  if (on_lookup) on_lookup(&changed);
  return inner_->Lookup(changed, limits);
}

absl::Status WrappedChannel::Fetch(absl::Span<const RemoteRecord> records,
                                   uint64_t lease_id, const CallLimits& limits,
                                   const FetchCallback& callback) {
  return inner_->Fetch(records, lease_id, limits,
                       [&](const FetchedSection& section) {
                         FetchedSection changed = section;
                         if (on_section) on_section(&changed, limits);
                         return callback(changed);
                       });
}

std::unique_ptr<StoreStream> WrappedChannel::OpenStore(
    const CallLimits& limits) {
  return std::make_unique<WrappedStream>(this, inner_->OpenStore(limits),
                                         limits);
}

}  // namespace latentkv
