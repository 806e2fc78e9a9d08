// Pages in the memory of a device, and what lies between them and the codec.
#ifndef LATENTKV_CLIENT_DEVICE_PAGES_H_
#define LATENTKV_CLIENT_DEVICE_PAGES_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "client/blocking_queue.h"
#include "client/device_encoder.h"
#include "client/engine_pages.h"
#include "client/head_share.h"
#include "kernels/basis_view.h"

namespace latentkv {

// Lanes of a device with the pinned memory that they copy from and to, for
// pages of one share. Thread-safe.
class DeviceStaging {
 public:
  // Raw blocks of a store that wait in the device's memory, so that the engine
  // need not wait for the way to the host: 500 tokens of an 8B model, beyond
  // which it waits at that way's speed.
  static constexpr uint64_t kStoreRoomBytes = uint64_t{64} << 20;

  // Of device number `number`. Pins `staging_bytes_max` for stores and a block
  // for each of `load_lanes`. ResourceExhausted.
  static absl::StatusOr<std::shared_ptr<DeviceStaging>> Open(
      std::unique_ptr<Device> device, uint32_t number, const HeadShare& share,
      uint64_t staging_bytes_max, uint32_t load_lanes);

  // Sections that a device restores at once: frames of 16384 tokens of an 8B
  // model at 43 times smaller are 49 MB.
  static constexpr uint64_t kGroupPayloadBytes = uint64_t{64} << 20;
  // Has the device restore sections of `basis`, which outlives this. Its error:
  // then they are restored on the CPU.
  absl::Status OpenGroups(const BasisView& basis);
  // Has the device encode blocks in the basis of `codec`, as soon as it can and
  // until what is returned is closed, which must be while there are `codec` and
  // `log`.
  std::shared_ptr<DeviceEncoder> OpenEncoder(const Codec* codec,
                                             const EncodeOptions& options,
                                             FailureLog* log) {
    encoder_ = std::make_shared<DeviceEncoder>(device_, codec, options, log);
    return encoder_;
  }

 private:
  friend class DevicePages;
  class GroupLease;
  struct LoadLane {
    PinnedMemory raw;  // Room for a block.
    // Before the memory it copies from is given back.
    std::unique_ptr<DeviceLane> lane;
  };
  // A load lane of one's own.
  class Lease {
   public:
    explicit Lease(DeviceStaging* staging)
        : staging_(staging),
          lane_(*staging->free_lanes_.Pop(absl::InfiniteFuture())) {}
    ~Lease() { staging_->free_lanes_.Push(lane_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    LoadLane* operator->() const { return lane_; }

   private:
    DeviceStaging* const staging_;
    LoadLane* const lane_;
  };

  DeviceStaging(std::unique_ptr<Device> device, uint32_t number,
                const HeadShare& share)
      : share_(share), number_(number), device_(std::move(device)) {}

  const HeadShare share_;
  const uint32_t number_;
  const std::shared_ptr<Device> device_;
  std::shared_ptr<RawBuffers> buffers_;
  std::mutex store_mutex_;
  // Under store_mutex_. Its order lets a buffer be used again at once.
  std::unique_ptr<DeviceLane> store_lane_;
  PinnedMemory group_payload_;
  std::unique_ptr<GroupLane> group_lane_;  // Null: none.
  std::atomic<bool> group_lane_taken_{false};
  std::shared_ptr<DeviceEncoder> encoder_;  // Null: none.
  std::vector<LoadLane> load_lanes_;
  BlockingQueue<LoadLane*> free_lanes_;
};

class DevicePages final : public EnginePages {
 public:
  DevicePages(PagedCache pages, std::shared_ptr<DeviceStaging> staging)
      : pages_(std::move(pages)), staging_(std::move(staging)) {}

  const PagedCache& cache() const override { return pages_; }
  std::optional<uint32_t> device() const override { return staging_->number_; }
  RawBuffers::Buffer TakeBuffer() override {
    return staging_->buffers_->Take();
  }
  absl::StatusOr<DeviceEventPtr> Gather(absl::Span<const BlockCopy> blocks,
                                        EngineStream stream) override;
  std::shared_ptr<DeviceEncoder> encoder() const override {
    return staging_->encoder_;
  }
  absl::StatusOr<DeviceEventPtr> UsedUntil(EngineStream stream) override {
    return staging_->device_->Record(stream);
  }
  absl::Status Fill(
      uint32_t first_layer, uint32_t last_layer,
      absl::Span<const TokenRun> slot, const DeviceEvent* used,
      absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) override;
  std::unique_ptr<GroupRestore> TryGroupRestore() override;

 private:
  // Queues the copies in the store lane and makes `stream` wait until the pages
  // are read.
  absl::Status GatherBetween(absl::Span<const BlockCopy> blocks,
                             EngineStream stream);

  const PagedCache pages_;
  const std::shared_ptr<DeviceStaging> staging_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_DEVICE_PAGES_H_
