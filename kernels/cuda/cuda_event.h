// What the parts of a CUDA device share: the thread's current device, and
// events.
#ifndef LATENTKV_KERNELS_CUDA_CUDA_EVENT_H_
#define LATENTKV_KERNELS_CUDA_CUDA_EVENT_H_

#include <cuda_runtime_api.h>

#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "kernels/cuda/beside_captures.h"
#include "kernels/cuda/check_launch.h"
#include "kernels/device.h"

namespace latentkv {

// By the rate of the bus a copy of a section takes some 20 us: waking from a
// sleep costs more. What takes longer waits for the engine, whose cores it
// should not take.
inline constexpr std::chrono::microseconds kSpinDuration{100},
    kSleepDuration{50};

using cuda::CudaStatus;

// Makes a device the thread's current one, and gives the engine's thread back
// what was.
class CurrentDevice {
 public:
  explicit CurrentDevice(int number) {
    cudaError_t error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ != number) {
      error = cudaSetDevice(number);
      changed_ = error == cudaSuccess;
    }
    status_ = CudaStatus(error, "choosing the device");
    // Behind the choice, so that no other device is touched.
    beside_captures_.emplace();
  }
  ~CurrentDevice() {
    beside_captures_.reset();
    if (changed_) cudaSetDevice(before_);
  }
  const absl::Status& status() const { return status_; }

 private:
  std::optional<cuda::BesideCaptures> beside_captures_;
  int before_ = 0;
  bool changed_ = false;
  absl::Status status_;
};

class CudaEvent final : public DeviceEvent {
 public:
  static absl::StatusOr<std::shared_ptr<CudaEvent>> RecordedIn(
      cudaStream_t stream, int device) {
    CurrentDevice current(device);
    if (!current.status().ok()) return current.status();
    auto event = std::make_shared<CudaEvent>();
    cudaError_t error =
        cudaEventCreateWithFlags(&event->event_, cudaEventDisableTiming);
    if (error == cudaSuccess) error = cudaEventRecord(event->event_, stream);
    absl::Status status = CudaStatus(error, "marking a point in a stream");
    if (!status.ok()) return status;
    return event;
  }
  ~CudaEvent() override {
    const cuda::BesideCaptures beside_captures;
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  absl::Status Wait() const override {
    const cuda::BesideCaptures beside_captures;
    const auto began = std::chrono::steady_clock::now();
    cudaError_t error;
    while ((error = cudaEventQuery(event_)) == cudaErrorNotReady) {
      if (std::chrono::steady_clock::now() - began < kSpinDuration) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kSleepDuration);
      }
    }
    return CudaStatus(error, "waiting for the device");
  }
  // `stream` waits for it.
  absl::Status HoldsUp(cudaStream_t stream) const {
    return CudaStatus(cudaStreamWaitEvent(stream, event_, 0),
                      "making a stream wait");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_CUDA_CUDA_EVENT_H_
