#include "transport/wire_call.h"

#include <grpcpp/generic/generic_stub.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "transport/convert.h"
#include "transport/grpc_library.h"

namespace latentkv {
namespace {

// Received ahead of whoever takes messages: some round trips of the largest
// window that gRPC gives itself.
constexpr size_t kReceivedBytesMax = 8u << 20;

}  // namespace

// The state that the queue's thread and the caller's share. Each running
// operation holds it, which may be long after the caller went away.
class WireCall::Exchange final : public std::enable_shared_from_this<Exchange> {
 public:
  explicit Exchange(absl::Time deadline)
      : deadline_(absl::ToChronoTime(deadline)) {
    context_.set_deadline(deadline_);
  }

  void Start(const std::shared_ptr<grpc::Channel>& channel,
             const char* method) {
    stream_ = grpc::GenericStub(channel).PrepareCall(&context_, method,
                                                     ClientQueue());
    stream_->StartCall(Begin(&send_));
    stream_->Read(&incoming_, Begin(&read_));
  }

  bool Send(const grpc::ByteBuffer& message) {
    if (!BeginSending()) return false;
    stream_->Write(message, Begin(&send_));
    return AwaitSent();
  }

  void SendDone() {
    if (BeginSending()) stream_->WritesDone(Begin(&send_));
    std::lock_guard lock(mutex_);
    send_over_ = true;
  }

  bool Receive(grpc::ByteBuffer* message) {
    bool resume = false;
    {
      std::unique_lock lock(mutex_);
      Await(&lock, [this] { return !received_.empty() || received_all_; });
      if (received_.empty() || cancelled_) return false;
      *message = std::move(received_.front());
      received_.pop_front();
      received_bytes_ -= message->Length();
      resume = paused_ && received_bytes_ < kReceivedBytesMax;
      if (resume) paused_ = false;
    }
    if (resume) stream_->Read(&incoming_, Begin(&read_));
    return true;
  }

  absl::Status Finish() {
    std::unique_lock lock(mutex_);
    Await(&lock, [this] { return done_; });
    if (cancelled_) return absl::CancelledError("cancelled");
    if (!done_)
      return absl::DeadlineExceededError("the daemon did not answer in time");
    return FromGrpc(status_);
  }

  void Cancel() {
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      changed_.notify_all();
    }
    context_.TryCancel();
  }

 private:
  // An operation of which one runs at a time.
  class Operation final : public Completion {
   public:
    explicit Operation(void (Exchange::*then)(bool)) : then_(then) {}
    void* Begin(std::shared_ptr<Exchange> exchange) {
      exchange_ = std::move(exchange);
      return TagOf(this);
    }
    void Complete(bool ok) override {
      const std::shared_ptr<Exchange> exchange = std::move(exchange_);
      (exchange.get()->*then_)(ok);
    }

   private:
    void (Exchange::*const then_)(bool);
    std::shared_ptr<Exchange> exchange_;
  };
  void* Begin(Operation* operation) {
    return operation->Begin(shared_from_this());
  }

  // Waits until what is being sent has been taken, and whether more can be.
  // What is not taken by the deadline is left behind, and ends sending.
  bool AwaitSent() {
    std::unique_lock lock(mutex_);
    Await(&lock, [this] { return !sending_; });
    if (sending_) send_over_ = true;
    return !send_over_ && !cancelled_;
  }
  bool BeginSending() {
    if (!AwaitSent()) return false;
    std::lock_guard lock(mutex_);
    sending_ = true;
    return true;
  }
  // Until `condition`, the deadline or a cancel.
  template <typename Condition>
  void Await(std::unique_lock<std::mutex>* lock, Condition condition) {
    changed_.wait_until(*lock, deadline_,
                        [&] { return cancelled_ || condition(); });
  }
  void OnRead(bool ok) {
    {
      std::lock_guard lock(mutex_);
      if (ok) {
        received_bytes_ += incoming_.Length();
        received_.push_back(std::exchange(incoming_, grpc::ByteBuffer()));
        paused_ = received_bytes_ >= kReceivedBytesMax;
        changed_.notify_all();
        if (paused_) return;
      }
    }
    if (ok) {
      stream_->Read(&incoming_, Begin(&read_));
    } else {
      stream_->Finish(&status_, Begin(&finish_));
      std::lock_guard lock(mutex_);
      received_all_ = true;
      changed_.notify_all();
    }
  }
  void OnSend(bool ok) {
    std::lock_guard lock(mutex_);
    sending_ = false;
    if (!ok) send_over_ = true;
    changed_.notify_all();
  }
  void OnFinish(bool) {
    std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  const std::chrono::system_clock::time_point deadline_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer incoming_;  // Of the read that runs.
  // Of the finish that runs, and to be read when it is done.
  grpc::Status status_;
  Operation send_{&Exchange::OnSend}, read_{&Exchange::OnRead},
      finish_{&Exchange::OnFinish};

  std::mutex mutex_;  // Of everything below.
  std::condition_variable changed_;
  std::deque<grpc::ByteBuffer> received_;
  size_t received_bytes_ = 0;
  bool paused_ = false;  // No read runs, as too much was received ahead.
  bool received_all_ = false;
  bool sending_ = true;  // Beginning with the call itself.
  bool send_over_ = false;
  bool cancelled_ = false;
  bool done_ = false;
};

WireCall::WireCall(const std::shared_ptr<grpc::Channel>& channel,
                   const char* method, const CallLimits& limits)
    : exchange_(std::make_shared<Exchange>(limits.deadline)),
      cancel_(limits.cancel) {
  exchange_->Start(channel, method);
  if (cancel_ != nullptr)
    hook_ = cancel_->Hook([exchange = exchange_.get()] { exchange->Cancel(); });
}

WireCall::~WireCall() {
  if (cancel_ != nullptr) cancel_->Unhook(hook_);
  exchange_->Cancel();
}

bool WireCall::Send(const grpc::ByteBuffer& message) {
  return exchange_->Send(message);
}
void WireCall::SendDone() { exchange_->SendDone(); }
bool WireCall::Receive(grpc::ByteBuffer* message) {
  return exchange_->Receive(message);
}
absl::Status WireCall::Finish() { return exchange_->Finish(); }

}  // namespace latentkv
