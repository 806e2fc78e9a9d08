// Pages in host memory.
#ifndef LATENTKV_CLIENT_HOST_PAGES_H_
#define LATENTKV_CLIENT_HOST_PAGES_H_

#include <memory>
#include <utility>

#include "client/engine_pages.h"
#include "client/head_share.h"

namespace latentkv {

class HostPages final : public EnginePages {
 public:
  // `pages` hold `share`, which outlives it.
  HostPages(const HeadShare& share, PagedCache pages,
            std::shared_ptr<RawBuffers> buffers)
      : share_(share), pages_(std::move(pages)), buffers_(std::move(buffers)) {}

  const PagedCache& cache() const override { return pages_; }
  std::optional<uint32_t> device() const override { return std::nullopt; }
  RawBuffers::Buffer TakeBuffer() override { return buffers_->Take(); }
  absl::StatusOr<DeviceEventPtr> Gather(absl::Span<const BlockCopy> blocks,
                                        EngineStream stream) override;
  std::shared_ptr<DeviceEncoder> encoder() const override { return nullptr; }
  absl::StatusOr<DeviceEventPtr> UsedUntil(EngineStream) override {
    return nullptr;
  }
  absl::Status Fill(
      uint32_t first_layer, uint32_t last_layer,
      absl::Span<const TokenRun> slot, const DeviceEvent* used,
      absl::FunctionRef<absl::Status(absl::Span<uint8_t>)> restore) override;
  std::unique_ptr<GroupRestore> TryGroupRestore() override { return nullptr; }

 private:
  const HeadShare& share_;
  const PagedCache pages_;
  const std::shared_ptr<RawBuffers> buffers_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_HOST_PAGES_H_
