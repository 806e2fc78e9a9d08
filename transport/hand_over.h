// Tells TSan what it cannot see: gRPC's libraries, which are not instrumented,
// hand something from thread to thread.
#ifndef LATENTKV_TRANSPORT_HAND_OVER_H_
#define LATENTKV_TRANSPORT_HAND_OVER_H_

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace latentkv {

// Everything before GiveToGrpc(p) happens before what follows TakeFromGrpc(p).
// Without TSan they are nothing.
inline void GiveToGrpc([[maybe_unused]] void* given) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(given);
#endif
}
inline void TakeFromGrpc([[maybe_unused]] void* taken) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(taken);
#endif
}

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_HAND_OVER_H_
