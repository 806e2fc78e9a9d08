#include "kernels/cuda/encode_lane.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "kernels/cuda/cuda_event.h"
#include "kernels/cuda/group_encoder.h"
#include "kernels/cuda/hopper_device.h"

namespace latentkv {
namespace {

// 4096 tokens: a few milliseconds of a device's work on an 8B model, and half a
// gigabyte of its raw blocks.
constexpr uint32_t kBlocksMax = 64;
// Positions of cosines and sines that a device keeps (group_lane.cc).
constexpr uint32_t kPositionsMax = 1u << 18;
// Of a block's raw form: frames of profiles are a tenth of it at most, and a
// block of many exact tokens is the CPU's.
constexpr uint64_t kFrameShare = 4;

class CudaEncodeLane final : public EncodeLane {
 public:
  explicit CudaEncodeLane(int device) : device_(device) {}
  ~CudaEncodeLane() override {
    CurrentDevice current(device_);
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    // While the device is current.
    encode_.reset();
    rotary_.reset();
    encoder_.reset();
    basis_.reset();
    room_ = {};
    frames_ = {};
  }

  absl::Status Open(const BasisView& view, uint64_t header_bytes,
                    const std::function<bool()>& cancelled) {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    known_sinks_of_ = view.known_sinks_of;
    groups_ = view.groups.size();
    block_bytes_ = RawBytes(*view.geometry, kBlockTokens);
    absl::Status status = CheckDevice(view);
    if (!status.ok()) return status;
    absl::StatusOr<std::unique_ptr<cuda::DeviceBasis>> basis =
        cuda::DeviceBasis::Create(view);
    if (!basis.ok()) return basis.status();
    basis_ = *std::move(basis);
    absl::StatusOr<std::unique_ptr<cuda::DeviceEncoder>> encoder =
        cuda::DeviceEncoder::Create(view, *basis_, cancelled);
    if (!encoder.ok()) return encoder.status();
    encoder_ = *std::move(encoder);
    rotary_ = std::make_unique<cuda::RotaryCache>(view.geometry,
                                                  basis_->rotary_layers());
    cuda::EncodeLimits limits;
    limits.blocks_max = kBlocksMax;
    limits.header_bytes = header_bytes;
    auto encode = cuda::GroupEncoder::Create(basis_.get(), encoder_.get(),
                                             rotary_.get(), limits);
    if (!encode.ok()) return encode.status();
    encode_ = *std::move(encode);
    auto room = cuda::DeviceArray<uint8_t>::Make(kBlocksMax * block_bytes_);
    if (!room.ok()) return room.status();
    room_ = *std::move(room);
    auto frames = cuda::PinnedArray<uint8_t>::Make(
        kBlocksMax * (block_bytes_ / kFrameShare + header_bytes));
    if (!frames.ok()) return frames.status();
    frames_ = *std::move(frames);
    return CudaStatus(
        cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
        "making a stream");
  }

  uint32_t blocks_max() const override { return kBlocksMax; }

  absl::StatusOr<std::vector<EncodedBlock>> Encode(
      absl::Span<const RawBlock> blocks, float step,
      LossChannels measured) override {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    if (blocks.size() > kBlocksMax)
      return absl::InvalidArgumentError(
          absl::StrCat(blocks.size(), " blocks at once"));
    std::vector<RawBlock> taken;
    for (const RawBlock& block : blocks) {
      if (IsReached(block)) taken.push_back(block);
    }
    absl::Status status = Queue(taken, step, measured);
    // Also after an error: some of it may be queued, and reads raw blocks.
    absl::Status over = Synchronize();
    if (status.ok()) status = over;
    if (!status.ok()) return status;
    const cuda::EncodeReport report = encode_->report();
    std::vector<EncodedBlock> encoded;
    size_t at = 0;  // Among those that were taken.
    for (const RawBlock& block : blocks) {
      encoded.push_back(IsReached(block) ? Encoded(report, at++, taken.size())
                                         : EncodedBlock());
      if (!IsReached(block))
        encoded.back().status = absl::ResourceExhaustedError(
            "positions beyond those that the device has turns of");
    }
    return encoded;
  }

 private:
  static bool IsReached(const RawBlock& block) {
    return block.first_token + kBlockTokens <= kPositionsMax;
  }

  // Block `b` of `count`.
  EncodedBlock Encoded(const cuda::EncodeReport& report, size_t b,
                       size_t count) const {
    EncodedBlock encoded;
    if (report.faults[b] != 0) {
      encoded.status = absl::ResourceExhaustedError(
          absl::StrCat("left to the CPU: fault ", report.faults[b]));
      return encoded;
    }
    encoded.frame = frames_.data() + report.frames[b];
    for (size_t g = 0; g < groups_; ++g) {
      encoded.loss += report.losses[g * count + b];
      encoded.section_bytes.push_back(report.section_bytes[g * count + b]);
    }
    return encoded;
  }

  absl::Status Queue(absl::Span<const RawBlock> blocks, float step,
                     LossChannels measured) {
    uint32_t positions = 0;
    for (const RawBlock& block : blocks)
      positions = std::max(positions, block.first_token + kBlockTokens);
    absl::Status status = rotary_->Reach(positions);
    if (!status.ok()) return status;
    std::vector<cuda::RestoreBlock> encoded;
    std::vector<std::vector<TokenSlot>> slots(blocks.size());
    for (uint32_t b = 0; b < blocks.size(); ++b) {
      const RawBlock& block = blocks[b];
      // A raw form is a page of a block's tokens.
      for (uint32_t t = 0; t < kBlockTokens; ++t) slots[b].push_back({b, t});
      const int32_t sinks =
          block.first_token == 0 ? known_sinks_of_(block.tokens) : -1;
      encoded.push_back({block.first_token, block.tokens, sinks, slots[b]});
      status = CudaStatus(
          cudaMemcpyAsync(room_.data() + b * block_bytes_, block.raw,
                          block_bytes_, cudaMemcpyHostToDevice, stream_),
          "copying to the device");
      if (!status.ok()) return status;
    }
    return encode_->Encode(encoded, Parts(), step, measured, frames_.data(),
                           frames_.size(), stream_);
  }

  // K and V of each layer in the raw forms.
  std::vector<cuda::DevicePart> Parts() const {
    std::vector<cuda::DevicePart> parts;
    uint8_t* base = room_.data();
    for (const LayerGeometry& layer : basis_->geometry().layers) {
      const int64_t dim = DTypeBytes(layer.dtype);
      for (const bool keys : {true, false}) {
        const int64_t head = dim * layer.DimOf(keys),
                      token = head * layer.kv_heads;
        parts.push_back(
            {base, static_cast<int64_t>(block_bytes_), token, head, dim});
        base += token * kBlockTokens;
      }
    }
    return parts;
  }

  absl::Status Synchronize() {
    absl::StatusOr<std::shared_ptr<CudaEvent>> event =
        CudaEvent::RecordedIn(stream_, device_);
    return event.ok() ? (*event)->Wait()
                      : CudaStatus(cudaStreamSynchronize(stream_),
                                   "waiting for the device");
  }

  // Whether the device can, and has the memory.
  absl::Status CheckDevice(const BasisView& view) const {
    absl::Status status =
        cuda::HopperMultiprocessors("encoding blocks").status();
    if (!status.ok()) return status;
    uint64_t needed = kBlocksMax * block_bytes_;
    for (const BasisGroupView& group : view.groups) {
      // The decoder's and the encoder's bytes with as much again for what goes
      // with them, and what a batch keeps of a latent: itself, its room, its
      // shift.
      needed += uint64_t{group.channels} * group.rank * 3 +
                uint64_t{kBlocksMax} * kBlockTokens * group.rank * 3;
    }
    return cuda::CheckRoom("encoding", needed);
  }

  const int device_;
  cudaStream_t stream_ = nullptr;
  std::function<int32_t(absl::Span<const uint32_t>)> known_sinks_of_;
  size_t groups_ = 0;
  uint64_t block_bytes_ = 0;
  std::unique_ptr<cuda::DeviceBasis> basis_;
  std::unique_ptr<cuda::DeviceEncoder> encoder_;
  std::unique_ptr<cuda::RotaryCache> rotary_;
  std::unique_ptr<cuda::GroupEncoder> encode_;
  cuda::DeviceArray<uint8_t> room_;  // Raw blocks.
  cuda::PinnedArray<uint8_t> frames_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EncodeLane>> OpenCudaEncodeLane(
    int device, const BasisView& basis, uint64_t header_bytes,
    const std::function<bool()>& cancelled) {
  auto lane = std::make_unique<CudaEncodeLane>(device);
  absl::Status status = lane->Open(basis, header_bytes, cancelled);
  if (!status.ok()) return status;
  return lane;
}

}  // namespace latentkv
