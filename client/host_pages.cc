#include "client/host_pages.h"

#include "core/limits.h"

namespace latentkv {

absl::StatusOr<DeviceEventPtr> HostPages::Gather(
    absl::Span<const BlockCopy> blocks, EngineStream) {
  const uint64_t bytes = RawBytes(share_.held(), kBlockTokens);
  for (const BlockCopy& block : blocks)
    GatherRaw(share_.held(), pages_, block.slot, {block.raw, bytes});
  return nullptr;
}

absl::Status HostPages::Fill(
    uint32_t first_layer, uint32_t last_layer, absl::Span<const TokenRun> slot,
    const DeviceEvent*,
    absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) {
  const uint64_t bytes =
      RawBytes(share_.held(), first_layer, last_layer, kBlockTokens);
  const auto memory = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  const absl::Span<uint8_t> raw(memory.get(), bytes);
  absl::Status status = share_.Restore(first_layer, last_layer, raw, restore);
  if (status.ok())
    ScatterRaw(share_.held(), first_layer, last_layer, raw, pages_, slot);
  return status;
}

}  // namespace latentkv
