// Calls to CUDA while an engine captures a graph.
#ifndef LATENTKV_KERNELS_CUDA_BESIDE_CAPTURES_H_
#define LATENTKV_KERNELS_CUDA_BESIDE_CAPTURES_H_

#include <cuda_runtime_api.h>

namespace latentkv::cuda {

// What the engine captures into a graph on other threads is none of this
// thread's business: without it a capture in CUDA's global mode, which is the
// default, would refuse this thread's calls and end as a failure.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_BESIDE_CAPTURES_H_
