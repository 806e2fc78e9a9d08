#include "transport/grpc_library.h"

#include <grpc/grpc.h>

#include <thread>

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
      while (made->Next(&tag, &ok)) static_cast<Completion*>(tag)->Complete(ok);
    }).detach();
    return made;
  }();
  return queue;
}

}  // namespace latentkv
