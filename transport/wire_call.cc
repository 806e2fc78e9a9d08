#include "transport/wire_call.h"

#include <grpcpp/generic/generic_stub.h>

#include <deque>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "transport/convert.h"
#include "transport/grpc_library.h"

namespace latentkv {
namespace {

// Received ahead of whoever takes messages: some round trips of the largest window that gRPC gives itself.
constexpr size_t kReceivedBytesMax = 8u << 20;

}  // namespace

// The state that the queue's thread and the caller's share. Each running operation holds it, which may be long after
// the caller went away.
class WireCall::Exchange final : public std::enable_shared_from_this<Exchange> {
 public:
  explicit Exchange(absl::Time deadline) : deadline_(deadline) { context_.set_deadline(absl::ToChronoTime(deadline)); }

  void Start(const std::shared_ptr<grpc::Channel>& channel, const char* method) {
    stream_ = grpc::GenericStub(channel).PrepareCall(&context_, method, ClientQueue());
    stream_->StartCall(Begin(&send_));
    stream_->Read(&incoming_, Begin(&read_));
  }

  bool Send(const grpc::ByteBuffer& message) {
    if (!BeginSending()) return false;
    stream_->Write(message, Begin(&send_));
    absl::MutexLock lock(&mutex_);
    AwaitSent();
    return !send_over_ && !cancelled_;
  }

  void SendDone() {
    if (BeginSending()) stream_->WritesDone(Begin(&send_));
    absl::MutexLock lock(&mutex_);
    send_over_ = true;
  }

  bool Receive(grpc::ByteBuffer* message) {
    bool resume = false;
    {
      absl::MutexLock lock(&mutex_);
      auto there = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return !received_.empty() || received_all_ || cancelled_;
      };
      mutex_.AwaitWithDeadline(absl::Condition(&there), deadline_);
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
    absl::MutexLock lock(&mutex_);
    auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return done_ || cancelled_; };
    mutex_.AwaitWithDeadline(absl::Condition(&done), deadline_);
    if (cancelled_) return absl::CancelledError("cancelled");
    if (!done_) return absl::DeadlineExceededError("the daemon did not answer in time");
    return FromGrpc(status_);
  }

  void Cancel() {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    }
    context_.TryCancel();
  }

 private:
  // An operation of which one runs at a time.
  class Operation final : public Completion {
   public:
    explicit Operation(void (Exchange::*then)(bool)) : then_(then) {}
    void Hold(std::shared_ptr<Exchange> exchange) { exchange_ = std::move(exchange); }
    void Complete(bool ok) override {
      const std::shared_ptr<Exchange> exchange = std::move(exchange_);
      (exchange.get()->*then_)(ok);
    }

   private:
    void (Exchange::*const then_)(bool);
    std::shared_ptr<Exchange> exchange_;
  };
  void* Begin(Operation* operation) {
    operation->Hold(shared_from_this());
    return static_cast<Completion*>(operation);
  }

  // Waits until what is being sent has been taken; what is not by the deadline is left behind, and ends sending.
  void AwaitSent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto sent = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !sending_ || cancelled_; };
    mutex_.AwaitWithDeadline(absl::Condition(&sent), deadline_);
    if (sending_) send_over_ = true;
  }
  bool BeginSending() {
    absl::MutexLock lock(&mutex_);
    AwaitSent();
    if (send_over_ || cancelled_) return false;
    sending_ = true;
    return true;
  }
  void OnRead(bool ok) {
    {
      absl::MutexLock lock(&mutex_);
      if (ok) {
        received_bytes_ += incoming_.Length();
        received_.push_back(std::exchange(incoming_, grpc::ByteBuffer()));
        paused_ = received_bytes_ >= kReceivedBytesMax;
        if (paused_) return;
      }
    }
    if (ok) {
      stream_->Read(&incoming_, Begin(&read_));
    } else {
      stream_->Finish(&status_, Begin(&finish_));
      absl::MutexLock lock(&mutex_);
      received_all_ = true;
    }
  }
  void OnSend(bool ok) {
    absl::MutexLock lock(&mutex_);
    sending_ = false;
    if (!ok) send_over_ = true;
  }
  void OnFinish(bool) {
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }

  const absl::Time deadline_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer incoming_;  // Of the read that runs.
  grpc::Status status_;        // Of the finish that runs, and to be read when it is done.
  Operation send_{&Exchange::OnSend}, read_{&Exchange::OnRead}, finish_{&Exchange::OnFinish};

  absl::Mutex mutex_;
  std::deque<grpc::ByteBuffer> received_ ABSL_GUARDED_BY(mutex_);
  size_t received_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;  // No read runs, as too much was received ahead.
  bool received_all_ ABSL_GUARDED_BY(mutex_) = false;
  bool sending_ ABSL_GUARDED_BY(mutex_) = true;  // Beginning with the call itself.
  bool send_over_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

WireCall::WireCall(const std::shared_ptr<grpc::Channel>& channel, const char* method, const CallLimits& limits)
    : exchange_(std::make_shared<Exchange>(limits.deadline)), cancel_(limits.cancel) {
  exchange_->Start(channel, method);
  if (cancel_ != nullptr) hook_ = cancel_->Hook([exchange = exchange_.get()] { exchange->Cancel(); });
}

WireCall::~WireCall() {
  if (cancel_ != nullptr) cancel_->Unhook(hook_);
  exchange_->Cancel();
}

bool WireCall::Send(const grpc::ByteBuffer& message) { return exchange_->Send(message); }
void WireCall::SendDone() { exchange_->SendDone(); }
bool WireCall::Receive(grpc::ByteBuffer* message) { return exchange_->Receive(message); }
absl::Status WireCall::Finish() { return exchange_->Finish(); }

}  // namespace latentkv
