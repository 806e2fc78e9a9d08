#include "kernels/cuda/group_lane.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "kernels/cuda/cuda_event.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/cuda/hopper_device.h"
#include "kernels/cuda/pages_cuda.h"

namespace latentkv {
namespace {

// Positions of cosines and sines that a device keeps: 256 K of heads of 128 are
// 128 MiB.
constexpr uint32_t kPositionsMax = 1u << 18;

absl::Status StatusOfFault(uint32_t fault) {
  switch (fault) {
    case cuda::kFaultNone:
      return absl::OkStatus();
    case cuda::kFaultMissing:
      return absl::ResourceExhaustedError(
          "a section that the device was not given");
    case cuda::kFaultRests:
      return absl::ResourceExhaustedError(
          "too many large latents for the device at once");
    case cuda::kFaultChecksum:
      return absl::DataLossError("a section does not match its checksum");
    case cuda::kFaultHeader:
      return absl::DataLossError("a section's first bytes are out of bounds");
    case cuda::kFaultStream:
      return absl::DataLossError("a section's entropy-coded bytes are damaged");
    case cuda::kFaultEscapes:
      return absl::DataLossError(
          "a section's escapes are not those of its symbols");
    case cuda::kFaultBounds:
      return absl::DataLossError("a section's latents are out of bounds");
    case cuda::kFaultSinks:
      return absl::DataLossError(
          "a section takes its sinks from the basis, which does not know them");
    default:
      return absl::InternalError(absl::StrCat("fault ", fault));
  }
}

class CudaGroupLane final : public GroupLane {
 public:
  explicit CudaGroupLane(int device) : device_(device) {}
  ~CudaGroupLane() override {
    CurrentDevice current(device_);
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    // While the device is current.
    restorer_.reset();
    rotary_.reset();
    basis_.reset();
    outcomes_ = {};
  }

  absl::Status Open(const BasisView& view, absl::Span<const HeadRange> heads,
                    const GroupLimits& limits) {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    absl::Status fits = CheckDevice(view, heads, limits);
    if (!fits.ok()) return fits;
    known_sinks_of_ = view.known_sinks_of;
    absl::StatusOr<std::unique_ptr<cuda::DeviceBasis>> basis =
        cuda::DeviceBasis::Create(view, heads);
    if (!basis.ok()) return basis.status();
    basis_ = *std::move(basis);
    rotary_ = std::make_unique<cuda::RotaryCache>(view.geometry,
                                                  basis_->rotary_layers());
    cuda::RestoreLimits restore_limits;
    restore_limits.blocks_max = limits.blocks_max;
    restore_limits.payload_bytes_max = limits.payload_bytes_max;
    absl::StatusOr<std::unique_ptr<cuda::GroupRestorer>> restorer =
        cuda::GroupRestorer::Create(basis_.get(), rotary_.get(),
                                    restore_limits);
    if (!restorer.ok()) return restorer.status();
    restorer_ = *std::move(restorer);
    blocks_max_ = limits.blocks_max;
    auto outcomes = cuda::PinnedArray<cuda::GroupRestorer::Outcome>::Make(
        view.groups.size() * blocks_max_);
    if (!outcomes.ok()) return outcomes.status();
    outcomes_ = *std::move(outcomes);
    return CudaStatus(
        cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
        "making a stream");
  }

  absl::Status Begin(const PagedCache& pages,
                     absl::Span<const GroupBlock> blocks,
                     const DeviceEvent* used) override {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    absl::Status status = Synchronize();
    if (!status.ok()) return status;
    status = PagePartsOf(basis_->geometry(), pages, 0,
                         basis_->geometry().layers.size())
                 .status();
    if (!status.ok()) return status;
    std::vector<std::vector<TokenSlot>> slots(blocks.size());
    std::vector<cuda::RestoreBlock> restored;
    uint32_t positions = 0;
    for (size_t b = 0; b < blocks.size(); ++b) {
      const GroupBlock& block = blocks[b];
      for (const TokenRun& run : block.slot) {
        for (uint32_t i = 0; i < run.count; ++i)
          slots[b].push_back({static_cast<uint32_t>(run.page), run.offset + i});
      }
      const int32_t sinks =
          block.first_token == 0 ? known_sinks_of_(block.tokens) : -1;
      restored.push_back({block.first_token, block.tokens, sinks, slots[b]});
      positions = std::max(positions, block.first_token + kBlockTokens);
    }
    std::vector<cuda::DevicePart> parts;
    for (const PagedLayer& layer : pages.layers) {
      const auto add = [&](uint8_t* base, const PageStrides& strides) {
        parts.push_back(
            {base, strides.page, strides.token, strides.head, strides.dim});
      };
      add(layer.key, layer.key_strides);
      add(layer.value, layer.value_strides);
    }
    if (positions > kPositionsMax)
      return absl::InvalidArgumentError(
          "positions beyond those that the device has turns of");
    status = rotary_->Reach(positions);
    if (status.ok() && used != nullptr)
      status = static_cast<const CudaEvent*>(used)->HoldsUp(stream_);
    if (status.ok()) status = restorer_->Begin(restored, parts, stream_);
    blocks_ = blocks.size();
    // What was queued must not be read any more when the next batch is begun.
    if (!status.ok()) Synchronize().IgnoreError();
    return status;
  }

  absl::StatusOr<DeviceEventPtr> Restore(
      uint32_t group, const uint8_t* pinned, uint64_t bytes,
      absl::Span<const GroupSection> sections) override {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    absl::Status status =
        restorer_->AddAndDecode(group, pinned, bytes, sections, stream_);
    if (status.ok()) status = restorer_->Restore(group, stream_);
    if (status.ok())
      status = restorer_->Report(outcomes_.data() + size_t{group} * blocks_max_,
                                 stream_);
    if (status.ok()) {
      absl::StatusOr<DeviceEventPtr> over =
          CudaEvent::RecordedIn(stream_, device_);
      if (over.ok()) return over;
      status = over.status();
    }
    // Some of it may be queued.
    Synchronize().IgnoreError();
    return status;
  }

  std::vector<absl::Status> Outcome(uint32_t group) const override {
    const cuda::GroupRestorer::Outcome* outcomes =
        outcomes_.data() + size_t{group} * blocks_max_;
    std::vector<absl::Status> statuses;
    for (uint32_t b = 0; b < blocks_; ++b)
      statuses.push_back(StatusOfFault(outcomes[b].fault));
    return statuses;
  }

 private:
  absl::Status Synchronize() {
    absl::StatusOr<std::shared_ptr<CudaEvent>> event =
        CudaEvent::RecordedIn(stream_, device_);
    return event.ok() ? (*event)->Wait()
                      : CudaStatus(cudaStreamSynchronize(stream_),
                                   "waiting for the device");
  }

  // Whether the device can, and has the memory.
  absl::Status CheckDevice(const BasisView& view,
                           absl::Span<const HeadRange> heads,
                           const GroupLimits& limits) const {
    absl::Status status =
        cuda::HopperMultiprocessors("restoring groups").status();
    if (!status.ok()) return status;
    const auto whole = [](uint64_t rank) {
      return (rank + cuda::kRankTile - 1) / cuda::kRankTile * cuda::kRankTile;
    };
    uint64_t needed = limits.payload_bytes_max,
             columns = whole(view.dims * view.history);
    for (size_t g = 0; g < view.groups.size(); ++g) {
      const BasisGroupView& group = view.groups[g];
      uint64_t channels = heads.empty() ? group.channels : 0;
      for (uint32_t l = group.first_layer;
           l < group.last_layer && !heads.empty(); ++l) {
        const LayerGeometry& layer = view.geometry->layers[l];
        channels +=
            uint64_t{heads[l].count} * (layer.DimOf(true) + layer.DimOf(false));
      }
      needed += channels *
                (columns + whole(group.rank) + g * whole(view.inherited_rank));
      columns += whole(std::max(group.rank, view.inherited_rank));
    }
    needed += uint64_t{limits.blocks_max} * kBlockTokens * columns;
    return cuda::CheckRoom("restoring groups", needed);
  }

  const int device_;
  cudaStream_t stream_ = nullptr;
  std::function<int32_t(absl::Span<const uint32_t>)> known_sinks_of_;
  std::unique_ptr<cuda::DeviceBasis> basis_;
  std::unique_ptr<cuda::RotaryCache> rotary_;
  std::unique_ptr<cuda::GroupRestorer> restorer_;
  // [groups][blocks_max]
  cuda::PinnedArray<cuda::GroupRestorer::Outcome> outcomes_;
  uint32_t blocks_max_ = 0, blocks_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GroupLane>> OpenCudaGroupLane(
    int device, const BasisView& basis, absl::Span<const HeadRange> heads,
    const GroupLimits& limits) {
  auto lane = std::make_unique<CudaGroupLane>(device);
  absl::Status status = lane->Open(basis, heads, limits);
  if (!status.ok()) return status;
  return lane;
}

}  // namespace latentkv
