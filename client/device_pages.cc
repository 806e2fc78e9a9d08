#include "client/device_pages.h"

#include <algorithm>
#include <utility>

#include "core/limits.h"

namespace latentkv {
namespace {

// What is queued in the lane is over, or has failed.
absl::Status WaitFor(DeviceLane* lane) {
  absl::StatusOr<DeviceEventPtr> end = lane->Record();
  return end.ok() ? (*end)->Wait() : end.status();
}

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceStaging>> DeviceStaging::Open(
    std::unique_ptr<Device> device, uint32_t number, const HeadShare& share,
    uint64_t staging_bytes_max, uint32_t load_lanes) {
  std::shared_ptr<DeviceStaging> staging(
      new DeviceStaging(std::move(device), number, share));
  const Geometry& geometry = share.held();
  const uint64_t block_bytes = RawBytes(geometry, kBlockTokens);
  const uint64_t buffers =
      std::max<uint64_t>(1, staging_bytes_max / block_bytes);
  absl::StatusOr<PinnedMemory> memory =
      staging->device_->AllocatePinned(buffers * block_bytes);
  if (!memory.ok()) return memory.status();
  staging->buffers_ =
      std::make_shared<PinnedBuffers>(*std::move(memory), block_bytes, buffers);
  absl::StatusOr<std::unique_ptr<DeviceLane>> lane = staging->device_->OpenLane(
      geometry,
      std::clamp<uint64_t>(kStoreRoomBytes / block_bytes, 1, buffers));
  if (!lane.ok()) return lane.status();
  staging->store_lane_ = *std::move(lane);
  for (uint32_t i = 0; i < load_lanes; ++i) {
    absl::StatusOr<PinnedMemory> raw =
        staging->device_->AllocatePinned(block_bytes);
    if (!raw.ok()) return raw.status();
    lane = staging->device_->OpenLane(geometry, 1);
    if (!lane.ok()) return lane.status();
    staging->load_lanes_.push_back({*std::move(raw), *std::move(lane)});
  }
  for (LoadLane& free : staging->load_lanes_) staging->free_lanes_.Push(&free);
  return staging;
}

class DeviceStaging::GroupLease final : public GroupRestore {
 public:
  explicit GroupLease(std::shared_ptr<DeviceStaging> staging)
      : staging_(std::move(staging)) {}
  ~GroupLease() override { staging_->group_lane_taken_ = false; }
  GroupLane* lane() override { return staging_->group_lane_.get(); }
  absl::Span<uint8_t> payload() override {
    return {staging_->group_payload_.get(), kGroupPayloadBytes};
  }

 private:
  const std::shared_ptr<DeviceStaging> staging_;
};

absl::Status DeviceStaging::OpenGroups(const BasisView& basis) {
  absl::StatusOr<PinnedMemory> payload =
      device_->AllocatePinned(kGroupPayloadBytes);
  if (!payload.ok()) return payload.status();
  absl::StatusOr<std::unique_ptr<GroupLane>> lane =
      device_->OpenGroupLane(basis, share_.heads_of(share_.rank()),
                             {kGroupBlocksMax, kGroupPayloadBytes});
  if (!lane.ok()) return lane.status();
  group_payload_ = *std::move(payload);
  group_lane_ = *std::move(lane);
  return absl::OkStatus();
}

std::unique_ptr<GroupRestore> DevicePages::TryGroupRestore() {
  if (staging_->group_lane_ == nullptr ||
      staging_->group_lane_taken_.exchange(true))
    return nullptr;
  return std::make_unique<DeviceStaging::GroupLease>(staging_);
}

absl::StatusOr<DeviceEventPtr> DevicePages::Gather(
    absl::Span<const BlockCopy> blocks, EngineStream stream) {
  std::lock_guard<std::mutex> lock(staging_->store_mutex_);
  absl::Status status = GatherBetween(blocks, stream);
  if (status.ok()) return staging_->store_lane_->Record();
  // Some of it may be queued, and may read pages.
  WaitFor(staging_->store_lane_.get()).IgnoreError();
  return status;
}

absl::Status DevicePages::GatherBetween(absl::Span<const BlockCopy> blocks,
                                        EngineStream stream) {
  DeviceLane* lane = staging_->store_lane_.get();
  absl::StatusOr<DeviceEventPtr> written = staging_->device_->Record(stream);
  if (!written.ok()) return written.status();
  absl::Status status = lane->Await(**written);
  if (!status.ok()) return status;
  absl::StatusOr<DeviceEventPtr> read = lane->Gather(pages_, blocks);
  if (!read.ok()) return read.status();
  return staging_->device_->Hold(stream, **read);
}

absl::Status DevicePages::Fill(
    uint32_t first_layer, uint32_t last_layer, absl::Span<const TokenRun> slot,
    const DeviceEvent* used,
    absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) {
  const DeviceStaging::Lease lease(staging_.get());
  uint8_t* raw = lease->raw.get();
  const HeadShare& share = staging_->share_;
  absl::Status status = share.Restore(
      first_layer, last_layer,
      {raw, RawBytes(share.held(), first_layer, last_layer, kBlockTokens)},
      restore);
  if (status.ok() && used != nullptr) status = lease->lane->Await(*used);
  if (!status.ok()) return status;
  status = lease->lane->Scatter(pages_, first_layer, last_layer, {slot, raw});
  // Also after an error: some of it may be queued.
  absl::Status over = WaitFor(lease->lane.get());
  return status.ok() ? over : status;
}

}  // namespace latentkv
