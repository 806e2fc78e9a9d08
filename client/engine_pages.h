// Where raw blocks come from and go to: the engine's pages, in whichever memory
// they lie.
#ifndef LATENTKV_CLIENT_ENGINE_PAGES_H_
#define LATENTKV_CLIENT_ENGINE_PAGES_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/device_encoder.h"
#include "client/raw_buffers.h"
#include "kernels/device.h"
#include "kernels/pages.h"

namespace latentkv {

// What restores sections of a basis where the pages lie, and pinned memory for
// the sections. Given back when destroyed.
class GroupRestore {
 public:
  virtual ~GroupRestore() = default;
  virtual GroupLane* lane() = 0;
  // Begins at a multiple of kSectionAlignment.
  virtual absl::Span<uint8_t> payload() = 0;
};
// The most blocks that one takes: 16384 tokens, with which a device is busy.
inline constexpr uint32_t kGroupBlocksMax = 256;

// Thread-safe. The pages must outlive every call and every event that it
// returned.
class EnginePages {
 public:
  virtual ~EnginePages() = default;
  virtual const PagedCache& cache() const = 0;
  // Nullopt: host memory.
  virtual std::optional<uint32_t> device() const = 0;

  // For stores. Raw blocks are of what the pages hold (client/head_share.h).
  // Room for one; null if there is none left.
  virtual RawBuffers::Buffer TakeBuffer() = 0;
  // Begins to copy what `stream` will have written into the blocks' memory, of
  // TakeBuffer. When it returns, well or not, the pages are not read any more,
  // or not before what is queued in `stream` later. The blocks are complete at
  // the event; null: they are.
  virtual absl::StatusOr<DeviceEventPtr> Gather(
      absl::Span<const BlockCopy> blocks, EngineStream stream) = 0;

  // What encodes their blocks; null: the CPU.
  virtual std::shared_ptr<DeviceEncoder> encoder() const = 0;

  // For loads. The point up to which what is queued in `stream` may use the
  // pages; null: they are free.
  virtual absl::StatusOr<DeviceEventPtr> UsedUntil(EngineStream stream) = 0;
  // Has `restore` write the raw form of layers [first_layer, last_layer) of a
  // block of the model, and copies what they hold of it into the pages of
  // `slot` behind `used`, which may be null. The pages have it when this
  // returns. The error of `restore`, with no page touched, or that of the copy,
  // with none written any more.
  virtual absl::Status Fill(
      uint32_t first_layer, uint32_t last_layer,
      absl::Span<const TokenRun> slot, const DeviceEvent* used,
      absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) = 0;
  // For loads: one caller at a time has it, the others use Fill. Null if it is
  // taken, or these pages have none.
  virtual std::unique_ptr<GroupRestore> TryGroupRestore() = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_ENGINE_PAGES_H_
