// The pages that were registered last, and the memory through which blocks
// reach them.
#ifndef LATENTKV_CLIENT_PAGE_REGISTRY_H_
#define LATENTKV_CLIENT_PAGE_REGISTRY_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "client/device_pages.h"
#include "client/engine_pages.h"
#include "client/failure_log.h"
#include "client/head_share.h"
#include "codec/codec.h"
#include "kernels/basis_view.h"
#include "kernels/device.h"

namespace latentkv {

// Thread-safe. What it is given outlives it; pages that it handed out may live
// on with jobs.
class PageRegistry {
 public:
  // `staging_bytes_max` and `thread_count` as in ClientOptions: of stores, and
  // of threads that fill pages. Pages on a device have it restore sections of
  // the basis of `codec`, and, if `write` is not exact, encode in it; null for
  // neither.
  PageRegistry(const HeadShare& share, const Devices& devices,
               uint64_t staging_bytes_max, uint32_t thread_count,
               const Codec* codec, const EncodeOptions& write, FailureLog* log);
  ~PageRegistry();

  // In the place of those before, which live on with the jobs that have them.
  // InvalidArgument if they do not fit the geometry or lie in several memories;
  // errors of the device, whose staging memory is allocated with its first
  // pages.
  absl::Status Register(PagedCache pages);
  // Null before the first.
  std::shared_ptr<EnginePages> current() const;

 private:
  absl::Status CheckShape(const PagedCache& pages) const;
  // The device that holds all pages; nullopt: the host does.
  absl::StatusOr<std::optional<uint32_t>> HolderOf(
      const PagedCache& pages) const;
  absl::StatusOr<std::shared_ptr<DeviceStaging>> StagingLocked(uint32_t device);
  void CloseEncoder();

  const HeadShare& share_;
  const Devices& devices_;
  const uint64_t staging_bytes_max_;
  const uint32_t thread_count_;
  const Codec* const codec_;
  const EncodeOptions write_;
  FailureLog* const log_;
  const std::shared_ptr<RawBuffers> host_buffers_;
  mutable std::mutex mutex_;
  std::shared_ptr<EnginePages> current_;
  std::shared_ptr<DeviceStaging> staging_;  // Of device `staged_`.
  uint32_t staged_ = 0;
  // Of staging_; null: none. It uses codec_ and log_, which jobs of its pages
  // outlive.
  std::shared_ptr<DeviceEncoder> encoder_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_PAGE_REGISTRY_H_
