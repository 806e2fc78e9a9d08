#include "transport/grpc_library.h"

#include <grpc/grpc.h>

namespace latentkv {

void KeepGrpcUp() {
  static const bool up = (grpc_init(), true);
  static_cast<void>(up);
}

}  // namespace latentkv
