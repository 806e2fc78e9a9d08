// Blocks encoded on the device that the engine works on, whole batches of them.
#ifndef LATENTKV_CLIENT_DEVICE_ENCODER_H_
#define LATENTKV_CLIENT_DEVICE_ENCODER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/failure_log.h"
#include "codec/codec.h"
#include "kernels/device.h"

namespace latentkv {

// Thread-safe.
class DeviceEncoder {
 public:
  // Opens a lane of `device` on a thread of its own, which takes seconds.
  // `options` are those of blocks in the basis of `codec`, which is used until
  // Close, as `log` is.
  DeviceEncoder(std::shared_ptr<Device> device, const Codec* codec,
                const EncodeOptions& options, FailureLog* log);
  ~DeviceEncoder() { Close(); }
  // Waits for that thread, which soon gives up, and for the turn that runs.
  // There are no turns any more.
  void Close();

  struct Block {
    BlockPlace place;
    const uint8_t* raw = nullptr;  // Complete.
    float loss_inherited = 0;
  };

  // A turn of one's own with the lane; null if there is none, or none yet.
  // Waits for the turns before.
  class Turn;
  std::unique_ptr<Turn> TakeTurn();

 private:
  void Open();

  const std::shared_ptr<Device> device_;
  const Codec& codec_;
  const EncodeOptions options_;
  FailureLog* const log_;
  std::atomic<bool> closing_{false};
  std::atomic<bool> ready_{false};
  std::mutex mutex_;
  std::unique_ptr<EncodeLane> lane_;  // Under mutex_; null: none.
  std::thread thread_;
};

class DeviceEncoder::Turn {
 public:
  explicit Turn(DeviceEncoder* encoder)
      : encoder_(*encoder), lock_(encoder->mutex_) {}
  uint32_t blocks_max() const {
    return encoder_.lane_ == nullptr ? 0 : encoder_.lane_->blocks_max();
  }
  // The frame of each of at most blocks_max blocks, those over their bound of
  // loss at finer steps (the codec would look for something smaller, too);
  // ResourceExhausted for one that has to be encoded on the CPU. After an error
  // of the device all are, from then on.
  std::vector<absl::StatusOr<Bytes>> Encode(absl::Span<const Block> blocks);

 private:
  // False after an error. Frames of `left` that are within their bound, at
  // `step`; what is over it stays in `left`. Of `surprises`, one for each of
  // `blocks`, those that are empty are set.
  bool EncodeAt(float step, LossChannels measured,
                absl::Span<const Block> blocks,
                std::vector<std::optional<float>>* surprises,
                std::vector<size_t>* left,
                std::vector<absl::StatusOr<Bytes>>* frames);
  bool IsOver(float loss) const;

  DeviceEncoder& encoder_;
  const std::unique_lock<std::mutex> lock_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_DEVICE_ENCODER_H_
