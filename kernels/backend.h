// The instruction sets that the kernels are written for. One is chosen at run
// time; every one gives the same bits.
#ifndef LATENTKV_KERNELS_BACKEND_H_
#define LATENTKV_KERNELS_BACKEND_H_

#include <cstdint>
#include <vector>

namespace latentkv {

enum class Backend : uint8_t {
  kPortable = 0,
  kAvx2 = 1,    // AVX2, FMA, F16C
  kAvx512 = 2,  // AVX-512 F, BW, VL, DQ, VNNI
};

// The fastest that this machine runs.
Backend BestBackend();

// All that this machine runs, kPortable first.
std::vector<Backend> AvailableBackends();

const char* BackendName(Backend backend);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_BACKEND_H_
