// What ClientStats is read from.
#ifndef LATENTKV_CLIENT_COUNTERS_H_
#define LATENTKV_CLIENT_COUNTERS_H_

#include <atomic>
#include <cstdint>

namespace latentkv {

struct ClientCounters {
  std::atomic<uint64_t> lookups{0}, hit_tokens{0}, loaded_tokens{0},
      loaded_bytes{0}, load_failures{0};
  std::atomic<uint64_t> stored_blocks{0}, stored_bytes{0}, stored_raw_bytes{0},
      dropped_blocks{0}, store_failures{0};
  std::atomic<uint64_t> device_encoded_blocks{0}, guarded_blocks{0};
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_COUNTERS_H_
