// A device made of host memory and threads, for what the client does with one:
// every queue is a thread that does its work late, and tests hold it up and let
// it fail.
#ifndef LATENTKV_TESTS_CLIENT_FAKE_DEVICE_H_
#define LATENTKV_TESTS_CLIENT_FAKE_DEVICE_H_

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "codec/basis.h"
#include "codec/codec.h"
#include "kernels/device.h"

namespace latentkv {

// Works in order; a failure is that of all behind it, as on a real device.
class FakeQueue {
 public:
  FakeQueue() : thread_([this] { Work(); }) {}
  ~FakeQueue();  // Does what is queued.
  void Add(std::function<absl::Status()> work);
  DeviceEventPtr Record();
  void Await(const DeviceEvent& event);

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<absl::Status()>> waiting_;
  bool closed_ = false;
  absl::Status status_;  // Of the worker.
  std::thread thread_;
};

// Two of them. Memory is given to them, and hooks are set, before pages are
// registered.
class FakeDevices final : public Devices {
 public:
  using Range = std::pair<const uint8_t*, const uint8_t*>;
  void Hold(const uint8_t* begin, size_t bytes, uint32_t device = 0) {
    ranges_[device].push_back({begin, begin + bytes});
  }

  // In the queue, before pages are touched.
  std::function<absl::Status()> on_gather, on_scatter;
  std::function<absl::Status()> on_queue_gather;  // In the call.
  // Whose sections it restores as the CPU does; null: none.
  const Basis* basis = nullptr;
  // In the call.
  std::function<absl::Status(uint32_t group)> on_queue_group;
  // In the queue.
  std::function<absl::Status(uint32_t group, size_t block)> on_restore_block;
  // In the basis of which it encodes, with a loss that the CPU never says, so
  // that its frames are known; null: none.
  const Codec* encoder = nullptr;
  static constexpr float kSaidLoss = 0.001953125f;
  // At finer steps than this it says as much less.
  float said_step = 0;
  // Of all channels it says this times as much.
  float whole_loss = 1;
  // Whether its encoder opens only to be cancelled.
  bool encoder_never_opens = false;
  mutable std::atomic<int> encoders_opening{0};
  // Of a batch: the device's error.
  std::function<absl::Status(size_t blocks)> on_encode;
  std::function<absl::Status(uint32_t first_token)> on_encode_block;
  mutable std::atomic<int> encoded_batches{0}, encoded_blocks{0};
  mutable std::atomic<int> restored_groups{0};
  mutable std::atomic<int> opened{0};
  mutable std::atomic<uint64_t> pinned_bytes{0};

  std::optional<uint32_t> HolderOf(const void* pointer) const override;
  absl::StatusOr<std::unique_ptr<Device>> Open(uint32_t number) const override;

 private:
  std::vector<Range> ranges_[2];
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_FAKE_DEVICE_H_
