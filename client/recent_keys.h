// A bounded map by chain key that forgets what was set longest ago.
#ifndef LATENTKV_CLIENT_RECENT_KEYS_H_
#define LATENTKV_CLIENT_RECENT_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "core/digest.h"

namespace latentkv {

// Not thread-safe.
template <typename Value>
class RecentKeys {
 public:
  explicit RecentKeys(size_t count_max) : count_max_(count_max) {}

  void Set(const Digest& key, Value value) {
    values_[key] = {std::move(value), ++sequence_};
    order_.emplace_back(sequence_, key);
    while (order_.size() > count_max_) {
      auto found = values_.find(order_.front().second);
      // A key that was set again, or erased and set, has a younger entry.
      if (found != values_.end() &&
          found->second.second == order_.front().first)
        values_.erase(found);
      order_.pop_front();
    }
  }
  void Erase(const Digest& key) { values_.erase(key); }
  // nullptr if it is not there; valid until the next change.
  const Value* Find(const Digest& key) const {
    auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second.first;
  }
  bool empty() const { return values_.empty(); }

 private:
  const size_t count_max_;
  uint64_t sequence_ = 0;
  absl::flat_hash_map<Digest, std::pair<Value, uint64_t>> values_;
  std::deque<std::pair<uint64_t, Digest>> order_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_RECENT_KEYS_H_
