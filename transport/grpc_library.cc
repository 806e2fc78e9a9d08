#include "transport/grpc_library.h"

#include <grpc/grpc.h>

#include <thread>

#include "transport/hand_over.h"

#if defined(__SANITIZE_THREAD__)
// What gRPC's headers do on both sides of its library is not to be looked at.
extern "C" const char* __tsan_default_suppressions() {
  return "race:grpc::internal::CallOp\nrace:grpc::ClientAsyncReaderWriter\n";
}
#endif

namespace latentkv {

void KeepGrpcUp() {
  static const bool up = (grpc_init(), true);
  static_cast<void>(up);
}

grpc::CompletionQueue* ClientQueue() {
  static grpc::CompletionQueue* const queue = [] {
    KeepGrpcUp();
    auto* made = new grpc::CompletionQueue();
    std::thread([made] {
      void* tag = nullptr;
      bool ok = false;
      while (made->Next(&tag, &ok)) {
        TakeFromGrpc(tag);
        static_cast<Completion*>(tag)->Complete(ok);
      }
    }).detach();
    return made;
  }();
  return queue;
}

void* TagOf(Completion* completion) {
  GiveToGrpc(completion);
  return completion;
}

}  // namespace latentkv
