#include "kernels/backend.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace latentkv {
namespace {

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not know it.
bool HasF16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Backend Detect() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") &&
                    __builtin_cpu_supports("fma") && HasF16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx2 && avx512) return Backend::kAvx512;
  if (avx2) return Backend::kAvx2;
#endif
  return Backend::kPortable;
}

}  // namespace

Backend BestBackend() {
  static const Backend best = Detect();
  return best;
}

std::vector<Backend> AvailableBackends() {
  std::vector<Backend> backends;
  for (Backend backend :
       {Backend::kPortable, Backend::kAvx2, Backend::kAvx512}) {
    if (backend <= BestBackend()) backends.push_back(backend);
  }
  return backends;
}

const char* BackendName(Backend backend) {
  switch (backend) {
    case Backend::kPortable:
      return "portable";
    case Backend::kAvx2:
      return "avx2";
    case Backend::kAvx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace latentkv
