// Arrays in device memory and in pinned host memory, owned.
#ifndef LATENTKV_KERNELS_CUDA_DEVICE_ARRAY_H_
#define LATENTKV_KERNELS_CUDA_DEVICE_ARRAY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/beside_captures.h"
#include "kernels/cuda/check_launch.h"

namespace latentkv::cuda {

// Runs `work(stream)` on a stream of its own, and waits for it alone: what it
// has done is there for every stream.
template <typename Work>
absl::Status OnOwnStream(Work work) {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = work(stream);
  const cudaError_t over =
      stream == nullptr ? cudaSuccess : cudaStreamSynchronize(stream);
  if (stream != nullptr) cudaStreamDestroy(stream);
  return CudaStatus(error == cudaSuccess ? over : error,
                    "filling device memory");
}

// Of trivial type, not initialised. Movable. The device it was made on must be
// current where it is destroyed.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ == nullptr) return;
    const BesideCaptures beside_captures;
    cudaFree(data_);
  }

  // ResourceExhausted.
  static absl::StatusOr<DeviceArray> Make(size_t size) {
    DeviceArray array;
    void* memory = nullptr;
    const cudaError_t error =
        cudaMalloc(&memory, (size == 0 ? 1 : size) * sizeof(T));
    if (error != cudaSuccess)
      return CudaStatus(
          error, absl::StrCat(size * sizeof(T), " bytes of device memory"));
    array.data_ = static_cast<T*>(memory);
    array.size_ = size;
    return array;
  }
  // With the values of `host`, when it returns.
  static absl::StatusOr<DeviceArray> Copy(absl::Span<const T> host) {
    absl::StatusOr<DeviceArray> array = Make(host.size());
    if (!array.ok()) return array;
    absl::Status status = OnOwnStream([&](cudaStream_t stream) {
      return cudaMemcpyAsync(array->data(), host.data(),
                             host.size() * sizeof(T), cudaMemcpyHostToDevice,
                             stream);
    });
    if (!status.ok()) return status;
    return array;
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// The same in host memory that a device copies from while the host goes on.
template <typename T>
class PinnedArray {
 public:
  PinnedArray() = default;
  PinnedArray(PinnedArray&& other) noexcept { *this = std::move(other); }
  PinnedArray& operator=(PinnedArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedArray() {
    if (data_ == nullptr) return;
    const BesideCaptures beside_captures;
    cudaFreeHost(data_);
  }

  // ResourceExhausted.
  static absl::StatusOr<PinnedArray> Make(size_t size) {
    PinnedArray array;
    void* memory = nullptr;
    const cudaError_t error =
        cudaMallocHost(&memory, (size == 0 ? 1 : size) * sizeof(T));
    if (error != cudaSuccess)
      return CudaStatus(
          error, absl::StrCat(size * sizeof(T), " bytes of pinned memory"));
    array.data_ = static_cast<T*>(memory);
    array.size_ = size;
    return array;
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// An array in both: what the host writes goes to the device by Upload.
template <typename T>
struct MirroredArray {
  PinnedArray<T> host;
  DeviceArray<T> device;

  T* data() const { return device.data(); }
  // Elements [first, first + count), which must stay as they are until the
  // stream has passed.
  absl::Status Upload(size_t first, size_t count, cudaStream_t stream) const {
    return CudaStatus(
        cudaMemcpyAsync(device.data() + first, host.data() + first,
                        count * sizeof(T), cudaMemcpyHostToDevice, stream),
        "copying to the device");
  }
};

// Arrays of a batch, one behind the other in both, so that few copies bring
// what the host wrote to the device.
class MirroredArena {
 public:
  template <typename T>
  struct Array {
    T* host = nullptr;
    T* device = nullptr;
    T* data() const { return device; }
  };
  // Bytes that an array of `count` elements takes.
  template <typename T>
  static constexpr size_t Bytes(size_t count) {
    return (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  MirroredArena() = default;
  explicit MirroredArena(MirroredArray<uint8_t> memory)
      : memory_(std::move(memory)) {}

  // From the first byte again.
  void Clear() { taken_ = uploaded_ = 0; }
  // `count` elements of trivial type; there must be room.
  template <typename T>
  Array<T> Take(size_t count) {
    Array<T> array = {reinterpret_cast<T*>(memory_.host.data() + taken_),
                      reinterpret_cast<T*>(memory_.device.data() + taken_)};
    taken_ += Bytes<T>(count);
    return array;
  }
  // What was taken since the last one, which must stay as it is until the
  // stream has passed.
  absl::Status Upload(cudaStream_t stream) {
    absl::Status status = memory_.Upload(uploaded_, taken_ - uploaded_, stream);
    uploaded_ = taken_;
    return status;
  }

 private:
  static constexpr size_t kAlignment = 16;
  MirroredArray<uint8_t> memory_;
  size_t taken_ = 0, uploaded_ = 0;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_DEVICE_ARRAY_H_
