#include "transport/nccl/nccl_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/nccl/device_guard.h"

namespace latentkv {
namespace {

class NcclLink final : public DeviceLink {
 public:
  NcclLink(std::unique_ptr<Communicator> communicator, int device,
           size_t staging_bytes)
      : communicator_(std::move(communicator)),
        device_(device),
        staging_bytes_(staging_bytes) {}
  ~NcclLink() override {
    const bool held =
        communicator_ != nullptr && communicator_->holds_buffers();
    communicator_.reset();
    DeviceGuard guard(device_);
    if (!held) {
      // Waits for the device, so not if something never lets go of it.
      cudaFree(staging_);
      cudaStreamDestroy(stream_);
    }
    cudaStreamDestroy(copies_);
  }

  absl::Status Allocate() {
    DeviceGuard guard(device_);
    // Streams that do not wait for the engine's default stream, nor it for
    // them.
    absl::Status status = CudaStatus(
        cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "a stream");
    if (status.ok())
      status =
          CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                     "a stream");
    if (status.ok() && communicator_ != nullptr) {
      status = CudaStatus(
          cudaMalloc(reinterpret_cast<void**>(&staging_), staging_bytes_),
          "staging");
    }
    return status.ok() ? status
                       : absl::ResourceExhaustedError(status.message());
  }

  uint64_t generation() const override {
    return communicator_ != nullptr && communicator_->status().ok()
               ? communicator_->generation()
               : 0;
  }
  size_t batch_bytes_max() const override { return staging_bytes_; }

  absl::Status Send(absl::Span<const HandoffFrame> frames,
                    absl::Time deadline) override {
    if (communicator_ == nullptr)
      return absl::UnavailableError("there is no communicator");
    DeviceGuard guard(device_);
    size_t used = 0;
    for (const HandoffFrame& frame : frames) {
      if (frame.bytes > staging_bytes_ - used)
        return absl::InvalidArgumentError("a batch longer than the staging");
      absl::Status status =
          CudaStatus(cudaMemcpyAsync(staging_ + used, frame.data, frame.bytes,
                                     cudaMemcpyDefault, stream_),
                     "a copy of a frame");
      if (!status.ok()) return status;
      used += frame.bytes;
    }
    absl::Status status = communicator_->Send(
        staging_, used, 1 - communicator_->rank(), stream_, deadline);
    return status.ok() ? communicator_->Await(stream_, deadline) : status;
  }

  absl::StatusOr<std::vector<HandoffFrame>> Receive(
      absl::Span<const uint64_t> frame_bytes, absl::Time deadline) override {
    if (communicator_ == nullptr)
      return absl::UnavailableError("there is no communicator");
    std::vector<HandoffFrame> frames;
    size_t used = 0;
    for (const uint64_t bytes : frame_bytes) {
      if (bytes > staging_bytes_ - used)
        return absl::InvalidArgumentError("a batch longer than the staging");
      frames.push_back({staging_ + used, bytes, true, nullptr});
      used += bytes;
    }
    absl::Status status = communicator_->Receive(
        staging_, used, 1 - communicator_->rank(), stream_, deadline);
    if (status.ok()) status = communicator_->Await(stream_, deadline);
    if (!status.ok()) return status;
    return frames;
  }

  absl::Status CopyToHost(const HandoffFrame& frame, uint8_t* out) override {
    DeviceGuard guard(device_);
    cudaError_t error = cudaMemcpyAsync(out, frame.data, frame.bytes,
                                        cudaMemcpyDefault, copies_);
    // Nothing but this copy is on it.
    if (error == cudaSuccess) error = cudaStreamSynchronize(copies_);
    return CudaStatus(error, "a copy of a frame to the host");
  }

  void Abort() override {
    if (communicator_ != nullptr) communicator_->Abort();
  }

 private:
  std::unique_ptr<Communicator> communicator_;
  const int device_;
  const size_t staging_bytes_;
  uint8_t* staging_ = nullptr;  // [staging_bytes_], on the device.
  cudaStream_t stream_ = nullptr;
  // Of its own: what the other holds up does not hold up a fallback.
  cudaStream_t copies_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceLink>> MakeNcclLink(
    std::unique_ptr<Communicator> communicator, int device,
    size_t staging_bytes) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || device < 0 ||
      device >= devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device ", device));
  }
  if (communicator != nullptr && communicator->ranks() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a link has two ranks, and this has ", communicator->ranks()));
  }
  auto link = std::make_unique<NcclLink>(std::move(communicator), device,
                                         staging_bytes);
  absl::Status status = link->Allocate();
  if (!status.ok()) return status;
  return link;
}

}  // namespace latentkv
