// What of gRPC a process has once, for all its channels and until it ends.
#ifndef LATENTKV_TRANSPORT_GRPC_LIBRARY_H_
#define LATENTKV_TRANSPORT_GRPC_LIBRARY_H_

#include <grpcpp/completion_queue.h>

namespace latentkv {

// Keeps the library up until the process ends. Otherwise it shuts down with the
// last channel or server of the process, and whoever let go of that waits, up
// to ten seconds, for a thread that polls sockets on behalf of large writes.
void KeepGrpcUp();

// The tag of an operation on the client's queue. Complete runs once, on the
// queue's own thread, and must not wait.
class Completion {
 public:
  virtual void Complete(bool ok) = 0;

 protected:
  ~Completion() = default;
};

// Serves itself with a thread. There is no end to it, because operations may be
// left behind that gRPC does not give up.
grpc::CompletionQueue* ClientQueue();
// What to start an operation of that queue with.
void* TagOf(Completion* completion);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_GRPC_LIBRARY_H_
