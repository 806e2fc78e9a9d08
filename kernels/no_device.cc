// In the place of kernels/cuda where there is no CUDA toolkit.
#include "kernels/device.h"

namespace latentkv {
namespace {

class NoDevices final : public Devices {
 public:
  std::optional<uint32_t> HolderOf(const void*) const override {
    return std::nullopt;
  }
  absl::StatusOr<std::unique_ptr<Device>> Open(uint32_t) const override {
    return absl::UnimplementedError(
        "this build knows no devices: configure it with a CUDA toolkit");
  }
};

}  // namespace

const Devices& SystemDevices() {
  static const NoDevices devices;
  return devices;
}

bool HasDeviceBackend() { return false; }

}  // namespace latentkv
