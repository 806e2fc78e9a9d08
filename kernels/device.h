// Accelerators that hold an engine's pages, for code that may not see their
// headers. kernels/cuda implements these; a build without it knows no device
// (no_device.cc). What is asked of a device is queued, and done in the order of
// its queue; errors are Internal with the driver's text, from the call that
// queues or from a later one.
#ifndef LATENTKV_KERNELS_DEVICE_H_
#define LATENTKV_KERNELS_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/geometry.h"
#include "kernels/basis_view.h"
#include "kernels/heads.h"
#include "kernels/pages.h"

namespace latentkv {

// A point in a queue. Thread-safe.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  // Returns when the device has passed the point, or has failed before.
  virtual absl::Status Wait() const = 0;
};
using DeviceEventPtr = std::shared_ptr<const DeviceEvent>;

// Host memory that a device copies from and to while the host goes on; given
// back with its last owner.
using PinnedMemory = std::shared_ptr<uint8_t[]>;

// A block of kBlockTokens tokens: where its tokens lie, and its raw form in
// pinned memory, at a multiple of 16 bytes.
struct BlockCopy {
  absl::Span<const TokenRun> slot;
  uint8_t* raw = nullptr;
};

// A queue of copies between pages on the device and raw forms in pinned memory.
// One thread at a time. What it is given as arguments is read before the call
// returns, but for memory behind pointers: that must live, and pinned memory
// stay untouched, until an event recorded behind the copy has passed.
class DeviceLane {
 public:
  // Waits for what is queued.
  virtual ~DeviceLane() = default;

  // What is queued from now on begins after `event`, of this device.
  virtual absl::Status Await(const DeviceEvent& event) = 0;
  // GatherRaw of every block. Returns the point from which on the pages are not
  // read any more, which comes before the last raw form is complete.
  // InvalidArgument, and nothing queued, for pages that no kernel takes.
  virtual absl::StatusOr<DeviceEventPtr> Gather(
      const PagedCache& pages, absl::Span<const BlockCopy> blocks) = 0;
  // ScatterRaw of layers [first_layer, last_layer) of one block, whose raw form
  // begins with first_layer.
  virtual absl::Status Scatter(const PagedCache& pages, uint32_t first_layer,
                               uint32_t last_layer, const BlockCopy& block) = 0;
  // The point behind all that is queued.
  virtual absl::StatusOr<DeviceEventPtr> Record() = 0;
};

// A block whose groups a device restores.
struct GroupBlock {
  // Its position, a multiple of kBlockTokens.
  uint32_t first_token = 0;
  absl::Span<const uint32_t> tokens;  // Of the chain up to the block's last.
  absl::Span<const TokenRun> slot;
};

// A section's place among the bytes of its group.
struct GroupSection {
  uint64_t offset = 0;  // A multiple of kSectionAlignment.
  // 0: there is none, and its block is not restored from this group on.
  uint32_t bytes = 0;
  uint32_t crc32c = 0;
  float step = 0;
};
inline constexpr uint64_t kSectionAlignment = 16;

struct GroupLimits {
  uint32_t blocks_max = 0;  // At once.
  // Of their sections of all groups, each filled up to kSectionAlignment.
  uint64_t payload_bytes_max = 0;
};

// Restores sections of a basis (docs/formats/payload.md) on a device, with the
// CPU's bits: all groups of some blocks, one after the other. One thread at a
// time, but for Outcome.
class GroupLane {
 public:
  // Waits for what is queued.
  virtual ~GroupLane() = default;

  // The blocks and pages from now on, once what was queued is over. Pages are
  // not written before `used`, which may be null. InvalidArgument for pages or
  // blocks that cannot be.
  virtual absl::Status Begin(const PagedCache& pages,
                             absl::Span<const GroupBlock> blocks,
                             const DeviceEvent* used) = 0;
  // Queues group `group`, the next in order: a section for each block, in
  // `bytes` bytes of pinned memory that begin at a multiple of
  // kSectionAlignment. The device itself reads them, up to a multiple of that
  // behind each: they stay as they are until it has passed the point that this
  // returns. From then on the group's layers are in their pages, for the blocks
  // of which Outcome says so. An error, of this call or of waiting for the
  // point, is that of all blocks: no page of the group is written any more.
  virtual absl::StatusOr<DeviceEventPtr> Restore(
      uint32_t group, const uint8_t* pinned, uint64_t bytes,
      absl::Span<const GroupSection> sections) = 0;
  // Of a group of these blocks whose point was passed without an error; any
  // thread, also while others are queued. For each block: OK; DataLoss, with no
  // page of the group touched nor of those to come, if the section does not
  // verify, does not decode or one before did not; ResourceExhausted, the same,
  // for a section that has to be restored on the CPU.
  virtual std::vector<absl::Status> Outcome(uint32_t group) const = 0;
};

// A block that a device encodes: its raw form (kernels/pages.h) in host memory,
// which is copied fastest from where it is pinned.
struct RawBlock {
  // Its position, a multiple of kBlockTokens.
  uint32_t first_token = 0;
  absl::Span<const uint32_t> tokens;  // Of the chain up to the block's last.
  const uint8_t* raw = nullptr;
};

// Of which channels a loss is measured: a tenth of a large group's, others for
// other blocks, or all, which takes half as long again as encoding does.
enum class LossChannels { kSome, kAll };

// What a device made of it.
struct EncodedBlock {
  // OK, or ResourceExhausted: the block has to be encoded on the CPU.
  absl::Status status;
  // As GroupCodec's, of all groups: a frame's is that times Codec::SurpriseOf.
  float loss = 0;
  std::vector<uint64_t> section_bytes;  // [groups]
  // In host memory: room for the frame's header, then its sections, tightly.
  uint8_t* frame = nullptr;
};

// Encodes blocks in a basis (docs/formats/payload.md) on a device. One thread
// at a time.
class EncodeLane {
 public:
  virtual ~EncodeLane() = default;
  virtual uint32_t blocks_max() const = 0;
  // `blocks`, at most blocks_max, at `step`. Waits; frames stay as they are
  // until the next call. The error of the device.
  virtual absl::StatusOr<std::vector<EncodedBlock>> Encode(
      absl::Span<const RawBlock> blocks, float step, LossChannels measured) = 0;
};

// Thread-safe; outlives its lanes.
class Device {
 public:
  virtual ~Device() = default;

  // ResourceExhausted.
  virtual absl::StatusOr<PinnedMemory> AllocatePinned(uint64_t bytes) = 0;
  // A lane for pages of `geometry`, with room for `block_count` raw blocks, at
  // least one, in the device's memory: whatever it is given beyond that waits
  // in its queue. ResourceExhausted.
  virtual absl::StatusOr<std::unique_ptr<DeviceLane>> OpenLane(
      const Geometry& geometry, uint64_t block_count) = 0;

  // Copies the basis to the device: what `basis` shows outlives the lane. Of
  // each layer the pages have `heads` alone, and no others are restored; empty:
  // all. Unimplemented for a device or a basis that is restored on the CPU,
  // ResourceExhausted.
  virtual absl::StatusOr<std::unique_ptr<GroupLane>> OpenGroupLane(
      const BasisView& basis, absl::Span<const HeadRange> heads,
      const GroupLimits& limits) = 0;

  // Copies the basis and its encoders to the device, which takes seconds for a
  // large basis, and ends early, Cancelled, when `cancelled` says so.
  // `header_bytes`: of a frame of all its groups. What `basis` shows outlives
  // the lane. Unimplemented for a device or a basis that is encoded on the CPU,
  // FailedPrecondition for a basis without an encoder, ResourceExhausted.
  virtual absl::StatusOr<std::unique_ptr<EncodeLane>> OpenEncodeLane(
      const BasisView& basis, uint64_t header_bytes,
      const std::function<bool()>& cancelled) = 0;

  // The point behind all that is queued in `stream` now.
  virtual absl::StatusOr<DeviceEventPtr> Record(EngineStream stream) = 0;
  // What is queued in `stream` from now on begins after `event`.
  virtual absl::Status Hold(EngineStream stream, const DeviceEvent& event) = 0;
};

// The devices of a machine. Thread-safe.
class Devices {
 public:
  virtual ~Devices() = default;
  // The number of the device in whose memory `pointer` lies; nullopt for host
  // memory.
  virtual std::optional<uint32_t> HolderOf(const void* pointer) const = 0;
  // Unimplemented without a backend.
  virtual absl::StatusOr<std::unique_ptr<Device>> Open(
      uint32_t number) const = 0;
};

// Those that this build has a backend for. Nothing is asked of a driver before
// the first call, nor needs one be there.
const Devices& SystemDevices();
// Whether it has any: without one, all memory counts as the host's.
bool HasDeviceBackend();

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_DEVICE_H_
