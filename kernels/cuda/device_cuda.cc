// Devices of CUDA.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "kernels/cuda/cuda_event.h"
#include "kernels/cuda/encode_lane.h"
#include "kernels/cuda/group_lane.h"
#include "kernels/cuda/pages_cuda.h"
#include "kernels/device.h"

namespace latentkv {
namespace {

// Copies whose tables wait in pinned memory: one that runs and some behind it.
constexpr size_t kTables = 8;
// Where each table begins, and every raw block.
constexpr uint64_t kAlignment = 256;

uint64_t Aligned(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

absl::StatusOr<PinnedMemory> Pinned(uint64_t bytes) {
  void* memory = nullptr;
  absl::Status status =
      CudaStatus(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable),
                 "pinning host memory");
  if (!status.ok()) return status;
  return PinnedMemory(static_cast<uint8_t*>(memory), [](uint8_t* from) {
    const cuda::BesideCaptures beside_captures;
    cudaFreeHost(from);
  });
}

// What the kernels read of one copy, in pinned memory, on its way to the
// device.
struct Table {
  PinnedMemory memory;
  DeviceEventPtr taken;  // When the copy has read it; null before the first.
};

class CudaLane final : public DeviceLane {
 public:
  CudaLane(int device, Geometry geometry, uint64_t block_count)
      : device_(device),
        geometry_(std::move(geometry)),
        blocks_max_(std::min<uint64_t>(block_count, kLaunchBlocksMax)),
        block_bytes_(Aligned(RawBytes(geometry_, kBlockTokens))),
        slots_offset_(Aligned(2 * geometry_.layers.size() * sizeof(PagePart))) {
  }

  absl::Status Open() {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    const uint64_t table_bytes =
        slots_offset_ + Aligned(blocks_max_ * kBlockTokens * sizeof(TokenSlot));
    for (Table& table : tables_) {
      absl::StatusOr<PinnedMemory> memory = Pinned(table_bytes);
      if (!memory.ok()) return memory.status();
      table.memory = *std::move(memory);
    }
    absl::Status status =
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                   "making a stream");
    if (status.ok()) {
      status = CudaStatus(
          cudaMalloc(&memory_, table_bytes + blocks_max_ * block_bytes_),
          "staging on the device");
    }
    raw_ = static_cast<uint8_t*>(memory_) + table_bytes;
    return status;
  }

  ~CudaLane() override {
    CurrentDevice current(device_);
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    cudaFree(memory_);
  }

  absl::Status Await(const DeviceEvent& event) override {
    return static_cast<const CudaEvent&>(event).HoldsUp(stream_);
  }

  absl::StatusOr<DeviceEventPtr> Record() override {
    return CudaEvent::RecordedIn(stream_, device_);
  }

  absl::StatusOr<DeviceEventPtr> Gather(
      const PagedCache& pages, absl::Span<const BlockCopy> blocks) override {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    absl::StatusOr<std::vector<PagePart>> parts =
        PagePartsOf(geometry_, pages, 0, geometry_.layers.size());
    if (!parts.ok()) return parts.status();
    const uint64_t bytes = RawBytes(geometry_, kBlockTokens);
    absl::StatusOr<DeviceEventPtr> read = Record();
    for (size_t at = 0; at < blocks.size() && read.ok(); at += blocks_max_) {
      const absl::Span<const BlockCopy> some = blocks.subspan(at, blocks_max_);
      absl::StatusOr<PageCopy> copy = SendTable(*parts, some);
      if (!copy.ok()) return copy.status();
      absl::Status status = GatherRawOnDevice(*copy, stream_);
      if (!status.ok()) return status;
      read = Record();
      for (size_t i = 0; i < some.size() && status.ok(); ++i) {
        status =
            CudaStatus(cudaMemcpyAsync(some[i].raw, raw_ + i * block_bytes_,
                                       bytes, cudaMemcpyDeviceToHost, stream_),
                       "copying from the device");
      }
      if (!status.ok()) return status;
    }
    return read;
  }

  absl::Status Scatter(const PagedCache& pages, uint32_t first_layer,
                       uint32_t last_layer, const BlockCopy& block) override {
    CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    absl::StatusOr<std::vector<PagePart>> parts =
        PagePartsOf(geometry_, pages, first_layer, last_layer);
    if (!parts.ok()) return parts.status();
    absl::StatusOr<PageCopy> copy = SendTable(*parts, {&block, 1});
    if (!copy.ok()) return copy.status();
    const uint64_t bytes =
        RawBytes(geometry_, first_layer, last_layer, kBlockTokens);
    absl::Status status =
        CudaStatus(cudaMemcpyAsync(raw_, block.raw, bytes,
                                   cudaMemcpyHostToDevice, stream_),
                   "copying to the device");
    if (!status.ok()) return status;
    return ScatterRawOnDevice(*copy, stream_);
  }

 private:
  // Queues that parts and slots go to the device.
  absl::StatusOr<PageCopy> SendTable(absl::Span<const PagePart> parts,
                                     absl::Span<const BlockCopy> blocks) {
    Table& table = tables_[next_table_++ % kTables];
    if (table.taken != nullptr) {
      absl::Status status = table.taken->Wait();
      if (!status.ok()) return status;
    }
    std::memcpy(table.memory.get(), parts.data(),
                parts.size() * sizeof(PagePart));
    auto* slots =
        reinterpret_cast<TokenSlot*>(table.memory.get() + slots_offset_);
    for (const BlockCopy& block : blocks) {
      for (const TokenRun& run : block.slot) {
        for (uint32_t i = 0; i < run.count; ++i)
          *slots++ = {static_cast<uint32_t>(run.page), run.offset + i};
      }
    }
    auto* there = static_cast<uint8_t*>(memory_);
    const uint64_t bytes =
        slots_offset_ + blocks.size() * kBlockTokens * sizeof(TokenSlot);
    absl::Status status =
        CudaStatus(cudaMemcpyAsync(there, table.memory.get(), bytes,
                                   cudaMemcpyHostToDevice, stream_),
                   "copying to the device");
    if (!status.ok()) return status;
    absl::StatusOr<DeviceEventPtr> taken = Record();
    if (!taken.ok()) return taken.status();
    table.taken = *std::move(taken);
    return PageCopy{reinterpret_cast<const PagePart*>(there),
                    static_cast<uint32_t>(parts.size()),
                    UnitsMax(parts),
                    reinterpret_cast<const TokenSlot*>(there + slots_offset_),
                    static_cast<uint32_t>(blocks.size()),
                    raw_,
                    block_bytes_};
  }

  const int device_;
  const Geometry geometry_;
  const uint64_t blocks_max_, block_bytes_, slots_offset_;
  cudaStream_t stream_ = nullptr;
  // The table of the copy that runs, then raw blocks.
  void* memory_ = nullptr;
  uint8_t* raw_ = nullptr;
  std::array<Table, kTables> tables_;
  size_t next_table_ = 0;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int number) : number_(number) {}

  absl::StatusOr<PinnedMemory> AllocatePinned(uint64_t bytes) override {
    CurrentDevice current(number_);
    if (!current.status().ok()) return current.status();
    return Pinned(bytes);
  }
  absl::StatusOr<std::unique_ptr<DeviceLane>> OpenLane(
      const Geometry& geometry, uint64_t block_count) override {
    auto lane = std::make_unique<CudaLane>(number_, geometry, block_count);
    absl::Status status = lane->Open();
    if (!status.ok()) return status;
    return lane;
  }
  absl::StatusOr<std::unique_ptr<GroupLane>> OpenGroupLane(
      const BasisView& basis, absl::Span<const HeadRange> heads,
      const GroupLimits& limits) override {
    return OpenCudaGroupLane(number_, basis, heads, limits);
  }
  absl::StatusOr<std::unique_ptr<EncodeLane>> OpenEncodeLane(
      const BasisView& basis, uint64_t header_bytes,
      const std::function<bool()>& cancelled) override {
    return OpenCudaEncodeLane(number_, basis, header_bytes, cancelled);
  }
  absl::StatusOr<DeviceEventPtr> Record(EngineStream stream) override {
    return CudaEvent::RecordedIn(static_cast<cudaStream_t>(stream), number_);
  }
  absl::Status Hold(EngineStream stream, const DeviceEvent& event) override {
    CurrentDevice current(number_);
    if (!current.status().ok()) return current.status();
    return static_cast<const CudaEvent&>(event).HoldsUp(
        static_cast<cudaStream_t>(stream));
  }

 private:
  const int number_;
};

class CudaDevices final : public Devices {
 public:
  std::optional<uint32_t> HolderOf(const void* pointer) const override {
    cudaPointerAttributes attributes;
    // Without a driver or a device there is no memory of one either.
    if (!CudaStatus(cudaPointerGetAttributes(&attributes, pointer), "").ok())
      return std::nullopt;
    if (attributes.type != cudaMemoryTypeDevice &&
        attributes.type != cudaMemoryTypeManaged)
      return std::nullopt;
    return static_cast<uint32_t>(attributes.device);
  }
  absl::StatusOr<std::unique_ptr<Device>> Open(uint32_t number) const override {
    CurrentDevice current(number);
    if (!current.status().ok()) return current.status();
    return std::make_unique<CudaDevice>(number);
  }
};

}  // namespace

const Devices& SystemDevices() {
  static const CudaDevices devices;
  return devices;
}

bool HasDeviceBackend() { return true; }

}  // namespace latentkv
