// The losses of restored blocks, which what is computed behind them inherits.
#ifndef LATENTKV_CLIENT_RESTORED_LOSSES_H_
#define LATENTKV_CLIENT_RESTORED_LOSSES_H_

#include <mutex>

#include "absl/types/span.h"
#include "client/recent_keys.h"
#include "core/digest.h"

namespace latentkv {

// Thread-safe.
class RestoredLosses {
 public:
  // Blocks that are remembered: four million tokens, more than an engine's
  // memory holds, in about 8 MB.
  static constexpr size_t kBlocksMax = 1u << 16;

  // The block's pages now hold what a frame with this loss was decoded to.
  void Restored(const Digest& key, float loss_chain);
  // They hold what the engine computed.
  void Computed(const Digest& key);
  // The largest loss among `prefix`; 0 if none of it was restored with one.
  float Inherited(absl::Span<const Digest> prefix) const;

 private:
  mutable std::mutex mutex_;
  RecentKeys<float> losses_{kBlocksMax};  // Above 0.
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_RESTORED_LOSSES_H_
