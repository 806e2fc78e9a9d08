// RankLink over a communicator of all ranks.
#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "transport/nccl/communicator.h"
#include "transport/nccl/device_guard.h"
#include "transport/rank_links.h"

namespace latentkv {
namespace {

// What a rank sends to all others at once, on the device, and as much that it
// receives there and in pinned memory: at 50 GB/s a millisecond, beside which
// the agreement on a batch is short.
constexpr size_t kRankStagingBytes = 64u << 20;

class NcclRankLink final : public RankLink {
 public:
  NcclRankLink(std::unique_ptr<Communicator> communicator, int device)
      : communicator_(std::move(communicator)),
        device_(device),
        // Whole lines of memory for each.
        bytes_max_(kRankStagingBytes / communicator_->ranks() / 256 * 256) {}
  ~NcclRankLink() override {
    const bool held = failed_ || communicator_->holds_buffers();
    communicator_.reset();
    // Freeing waits for all of the device. Behind a failure that may be for
    // ever: the engine's own kernels wait for the rank that died. A link of so
    // few is worth less than the engine.
    if (held) return;
    DeviceGuard guard(device_);
    cudaFree(sent_);
    cudaFree(received_);
    cudaFreeHost(arrived_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Allocate() {
    DeviceGuard guard(device_);
    absl::Status status = CudaStatus(
        cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    if (status.ok())
      status = CudaStatus(
          cudaMalloc(reinterpret_cast<void**>(&sent_), kRankStagingBytes),
          "staging");
    if (status.ok()) {
      status = CudaStatus(
          cudaMalloc(reinterpret_cast<void**>(&received_), kRankStagingBytes),
          "staging");
    }
    if (status.ok()) {
      status =
          CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&arrived_),
                                   kRankStagingBytes, cudaHostAllocPortable),
                     "staging");
    }
    return status.ok() ? status
                       : absl::ResourceExhaustedError(status.message());
  }

  uint64_t generation() const override { return communicator_->generation(); }
  uint64_t bytes_max() const override { return bytes_max_; }

  absl::Status Exchange(absl::Span<const std::vector<RankPart>> to,
                        absl::Span<const uint64_t> from_bytes,
                        const std::function<void(uint32_t, ByteSpan)>& take,
                        absl::Time deadline) override {
    DeviceGuard guard(device_);
    absl::Status status = Move(to, from_bytes, deadline);
    if (!status.ok()) {
      failed_ = true;
      // A copy of them may still be under way, and then will be as long as the
      // process.
      if (communicator_->holds_buffers())
        new std::vector<std::vector<RankPart>>(to.begin(), to.end());
      return status;
    }
    for (uint32_t rank = 0; rank < from_bytes.size(); ++rank) {
      if (from_bytes[rank] > 0)
        take(rank, {arrived_ + rank * bytes_max_, from_bytes[rank]});
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Move(absl::Span<const std::vector<RankPart>> to,
                    absl::Span<const uint64_t> from_bytes,
                    absl::Time deadline) {
    std::vector<Communicator::Piece> pieces;
    for (uint32_t rank = 0; rank < communicator_->ranks(); ++rank) {
      uint64_t bytes = 0;
      for (const RankPart& part : to[rank]) bytes += part.bytes.size();
      if (bytes > bytes_max_ || from_bytes[rank] > bytes_max_) {
        return absl::InvalidArgumentError(
            absl::StrCat("more than ", bytes_max_, " bytes for a rank"));
      }
      if (rank != communicator_->rank()) {
        pieces.push_back({rank, sent_ + rank * bytes_max_, bytes,
                          received_ + rank * bytes_max_, from_bytes[rank]});
      }
    }
    absl::Status status;
    for (uint32_t rank = 0; rank < to.size(); ++rank) {
      uint8_t* at = sent_ + rank * bytes_max_;
      for (const RankPart& part : to[rank]) {
        status.Update(
            CudaStatus(cudaMemcpyAsync(at, part.bytes.data(), part.bytes.size(),
                                       cudaMemcpyDefault, stream_),
                       "copying parts"));
        at += part.bytes.size();
      }
    }
    if (status.ok())
      status = communicator_->ExchangeAll(pieces, stream_, deadline);
    for (uint32_t rank = 0; rank < from_bytes.size() && status.ok(); ++rank) {
      if (from_bytes[rank] == 0) continue;
      status = CudaStatus(
          cudaMemcpyAsync(arrived_ + rank * bytes_max_,
                          received_ + rank * bytes_max_, from_bytes[rank],
                          cudaMemcpyDeviceToHost, stream_),
          "copying parts");
    }
    // Also after an error: what is queued reads the caller's memory.
    absl::Status over = communicator_->Await(stream_, deadline);
    return status.ok() ? over : status;
  }

  std::unique_ptr<Communicator> communicator_;
  bool failed_ = false;
  const int device_;
  const uint64_t bytes_max_;
  cudaStream_t stream_ = nullptr;
  // [ranks][bytes_max_] on the device.
  uint8_t *sent_ = nullptr, *received_ = nullptr;
  uint8_t* arrived_ = nullptr;  // The same, pinned.
};

absl::StatusOr<std::unique_ptr<RankLink>> MakeNcclRankLink(
    uint32_t device, const GroupPlace& place, const RankJoin& join,
    absl::Time deadline) {
  absl::StatusOr<std::unique_ptr<Communicator>> communicator =
      Communicator::Join(place, join, static_cast<int>(device), deadline);
  if (!communicator.ok()) return communicator.status();
  auto link = std::make_unique<NcclRankLink>(*std::move(communicator),
                                             static_cast<int>(device));
  absl::Status status = link->Allocate();
  if (!status.ok()) return status;
  // Ranks are connected when they first send: now, while nothing waits for it.
  auto byte = std::make_shared<Bytes>(1);
  std::vector<std::vector<RankPart>> to(
      place.ranks, std::vector<RankPart>{RankPart{*byte, byte}});
  std::vector<uint64_t> from_bytes(place.ranks, 1);
  to[place.rank].clear();
  from_bytes[place.rank] = 0;
  status = link->Exchange(
      to, from_bytes, [](uint32_t, ByteSpan) {}, deadline);
  if (!status.ok()) return status;
  return link;
}

}  // namespace

RankLinkFactory DeviceRankLinks() { return MakeNcclRankLink; }

}  // namespace latentkv
