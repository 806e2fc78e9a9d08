// The sections of one block that were received and not yet decoded: they are
// decoded in order, by one thread at a time.
#ifndef LATENTKV_CLIENT_SECTION_QUEUE_H_
#define LATENTKV_CLIENT_SECTION_QUEUE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "core/bytes.h"

namespace latentkv {

struct ReceivedSection {
  uint32_t number = 0;
  ByteSpan payload;
  std::shared_ptr<const void> owner;  // Keeps the payload.
};

// Thread-safe.
class SectionQueue {
 public:
  // True if nobody takes from the queue: then somebody must, until Take returns
  // nothing.
  bool Add(ReceivedSection section) {
    std::lock_guard<std::mutex> lock(mutex_);
    waiting_.push_back(std::move(section));
    return !std::exchange(busy_, true);
  }
  std::optional<ReceivedSection> Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.empty()) {
      busy_ = false;
      return std::nullopt;
    }
    ReceivedSection section = std::move(waiting_.front());
    waiting_.pop_front();
    return section;
  }

 private:
  std::mutex mutex_;
  std::deque<ReceivedSection> waiting_;
  bool busy_ = false;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_SECTION_QUEUE_H_
