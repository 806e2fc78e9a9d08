#include "client/page_registry.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/host_pages.h"
#include "core/limits.h"

namespace latentkv {

PageRegistry::PageRegistry(const HeadShare& share, const Devices& devices,
                           uint64_t staging_bytes_max, uint32_t thread_count,
                           const Codec* codec, const EncodeOptions& write,
                           FailureLog* log)
    : share_(share),
      devices_(devices),
      staging_bytes_max_(staging_bytes_max),
      thread_count_(thread_count),
      codec_(codec),
      write_(write),
      log_(log),
      host_buffers_(
          std::make_shared<HostBuffers>(RawBytes(share.held(), kBlockTokens))) {
}

absl::Status PageRegistry::Register(PagedCache pages) {
  absl::Status status = CheckShape(pages);
  if (!status.ok()) return status;
  absl::StatusOr<std::optional<uint32_t>> holder = HolderOf(pages);
  if (!holder.ok()) return holder.status();
  std::lock_guard<std::mutex> lock(mutex_);
  if (!holder->has_value()) {
    current_ =
        std::make_shared<HostPages>(share_, std::move(pages), host_buffers_);
    return absl::OkStatus();
  }
  absl::StatusOr<std::shared_ptr<DeviceStaging>> staging =
      StagingLocked(**holder);
  if (!staging.ok()) return staging.status();
  current_ =
      std::make_shared<DevicePages>(std::move(pages), *std::move(staging));
  return absl::OkStatus();
}

std::shared_ptr<EnginePages> PageRegistry::current() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return current_;
}

absl::Status PageRegistry::CheckShape(const PagedCache& pages) const {
  const size_t layers = share_.held().layers.size();
  if (pages.layers.size() != layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pages of ", pages.layers.size(), " layers; the model has ", layers));
  }
  if (pages.page_tokens == 0 || pages.page_count == 0)
    return absl::InvalidArgumentError("there are no pages");
  for (const PagedLayer& layer : pages.layers) {
    if (layer.key == nullptr || layer.value == nullptr)
      return absl::InvalidArgumentError("a layer without pages");
  }
  return absl::OkStatus();
}

PageRegistry::~PageRegistry() { CloseEncoder(); }

void PageRegistry::CloseEncoder() {
  if (encoder_ != nullptr) encoder_->Close();
  encoder_.reset();
}

absl::StatusOr<std::optional<uint32_t>> PageRegistry::HolderOf(
    const PagedCache& pages) const {
  const auto name = [](std::optional<uint32_t> holder) {
    return holder.has_value() ? absl::StrCat("on device ", *holder)
                              : std::string("in host memory");
  };
  const std::optional<uint32_t> first = devices_.HolderOf(pages.layers[0].key);
  for (size_t l = 0; l < pages.layers.size(); ++l) {
    for (const uint8_t* memory : {pages.layers[l].key, pages.layers[l].value}) {
      const std::optional<uint32_t> holder = devices_.HolderOf(memory);
      if (holder == first) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "pages of layer ", l, " lie ", name(holder), ", those of layer 0 ",
          name(first), ": all must lie in one memory"));
    }
  }
  return first;
}

absl::StatusOr<std::shared_ptr<DeviceStaging>> PageRegistry::StagingLocked(
    uint32_t device) {
  if (staging_ != nullptr && staged_ == device) return staging_;
  absl::StatusOr<std::unique_ptr<Device>> opened = devices_.Open(device);
  if (!opened.ok()) return opened.status();
  absl::StatusOr<std::shared_ptr<DeviceStaging>> staging = DeviceStaging::Open(
      *std::move(opened), device, share_, staging_bytes_max_, thread_count_);
  if (!staging.ok()) return staging.status();
  // That of a device that the pages have left takes its memory.
  CloseEncoder();
  if (codec_ != nullptr) {
    absl::Status groups = (*staging)->OpenGroups(*codec_->basis_view());
    if (!groups.ok())
      log_->Info(
          absl::StrCat("blocks are restored on the CPU: ", groups.message()));
    try {
      if (!write_.exact)
        encoder_ = (*staging)->OpenEncoder(codec_, write_, log_);
    } catch (const std::exception& error) {  // A thread that cannot be had.
      log_->Info(absl::StrCat("blocks are encoded on the CPU: ", error.what()));
    }
  }
  staging_ = *staging;
  staged_ = device;
  return staging;
}

}  // namespace latentkv
