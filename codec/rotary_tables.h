// The rotary tables of blocks in use, so that the sections of a block share
// them.
#ifndef LATENTKV_CODEC_ROTARY_TABLES_H_
#define LATENTKV_CODEC_ROTARY_TABLES_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "core/geometry.h"
#include "kernels/rotary.h"

namespace latentkv {

// Thread-safe.
class RotaryTables {
 public:
  explicit RotaryTables(const Geometry& geometry);

  // The table of kBlockTokens tokens from `first_token` on, for layer `layer`.
  std::shared_ptr<const RotaryTable> Get(uint32_t layer, uint32_t first_token);

 private:
  // A restore goes through its blocks once a group: as many tables as a context
  // of 64 K tokens has blocks, 32 MiB of them for heads of 64.
  static constexpr size_t kTablesMax = 1024;

  std::vector<LayerGeometry> kinds_;  // Layers that rotate differently.
  std::vector<uint32_t> kind_of_layer_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::pair<uint32_t, uint32_t>,
                      std::shared_ptr<const RotaryTable>>
      tables_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_ROTARY_TABLES_H_
