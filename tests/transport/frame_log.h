// Frames of a transfer, and a sink that says whether each came once, in order
// and whole.
#ifndef LATENTKV_TESTS_TRANSPORT_FRAME_LOG_H_
#define LATENTKV_TESTS_TRANSPORT_FRAME_LOG_H_

#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/bytes.h"
#include "transport/handoff.h"

namespace latentkv {

// The same for the same seed, in every process.
inline std::vector<HandoffFrame> RandomFrames(uint32_t seed, size_t count,
                                              size_t bytes_max) {
  std::mt19937 random(seed);
  std::vector<HandoffFrame> frames;
  for (size_t i = 0; i < count; ++i) {
    auto bytes = std::make_shared<Bytes>(1 + random() % bytes_max);
    for (uint8_t& byte : *bytes) byte = static_cast<uint8_t>(random());
    frames.push_back({bytes->data(), bytes->size(), false, bytes});
  }
  return frames;
}

class FrameLog : public FrameSink {
 public:
  explicit FrameLog(std::vector<HandoffFrame> expected, uint64_t next = 0)
      : expected_(std::move(expected)), next_(next) {}

  absl::Status Take(uint64_t index, const HandoffFrame& frame) override {
    std::lock_guard lock(mutex_);
    if (index != next_)
      return absl::InternalError(
          absl::StrCat("frame ", index, " came, and ", next_, " was next"));
    const HandoffFrame& expected = expected_[index];
    if (ByteSpan(frame.data, frame.bytes) !=
        ByteSpan(expected.data, expected.bytes)) {
      return absl::DataLossError(
          absl::StrCat("frame ", index, " has other bytes"));
    }
    ++next_;
    return absl::OkStatus();
  }
  uint64_t next() const {
    std::lock_guard lock(mutex_);
    return next_;
  }

 private:
  const std::vector<HandoffFrame> expected_;
  mutable std::mutex mutex_;
  uint64_t next_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_TRANSPORT_FRAME_LOG_H_
