// One call to the daemon: messages there and back.
#ifndef LATENTKV_TRANSPORT_WIRE_CALL_H_
#define LATENTKV_TRANSPORT_WIRE_CALL_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>

#include "absl/status/status.h"
#include "transport/cache_channel.h"

namespace latentkv {

// gRPC's own blocking calls do not return while a message cannot be sent,
// whatever their deadline, if the daemon is stopped and the socket in between
// is full. This one returns, and leaves behind what gRPC will not give up until
// the daemon goes on or dies. Calls of every kind are made as streams, which
// are the same on the wire.
//
// One thread may send while another receives.
class WireCall {
 public:
  // Starts the call of `method` ("/package.Service/Method").
  WireCall(const std::shared_ptr<grpc::Channel>& channel, const char* method,
           const CallLimits& limits);
  ~WireCall();  // Cancels what still runs.
  WireCall(const WireCall&) = delete;
  WireCall& operator=(const WireCall&) = delete;

  // Waits until the message has been taken for sending. False when the call is
  // over; Finish tells why.
  bool Send(const grpc::ByteBuffer& message);
  // No more is sent.
  void SendDone();
  // Waits for the next message; false when there is none.
  bool Receive(grpc::ByteBuffer* message);
  // Once, when Receive has returned false.
  absl::Status Finish();

 private:
  class Exchange;
  const std::shared_ptr<Exchange> exchange_;
  CancelToken* const cancel_;
  uint64_t hook_ = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_WIRE_CALL_H_
