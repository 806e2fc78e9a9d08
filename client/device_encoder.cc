#include "client/device_encoder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/frame.h"

namespace latentkv {

DeviceEncoder::DeviceEncoder(std::shared_ptr<Device> device, const Codec* codec,
                             const EncodeOptions& options, FailureLog* log)
    : device_(std::move(device)),
      codec_(*codec),
      options_(options),
      log_(log),
      thread_([this] { Open(); }) {}

DeviceEncoder::~DeviceEncoder() {
  closing_ = true;
  thread_.join();
}

void DeviceEncoder::Open() {
  const BasisView& basis = *codec_.basis_view();
  absl::StatusOr<std::unique_ptr<EncodeLane>> lane =
      device_->OpenEncodeLane(basis, FrameHeaderBytes(basis.groups.size()),
                              [this] { return closing_.load(); });
  if (!lane.ok()) {
    if (!closing_)
      log_->Info(absl::StrCat("blocks are encoded on the CPU: ",
                              lane.status().message()));
    return;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  lane_ = *std::move(lane);
  ready_ = true;
}

std::unique_ptr<DeviceEncoder::Turn> DeviceEncoder::TakeTurn() {
  return ready_ ? std::make_unique<Turn>(this) : nullptr;
}

std::vector<absl::StatusOr<Bytes>> DeviceEncoder::Turn::Encode(
    absl::Span<const Block> blocks) {
  std::vector<RawBlock> raw;
  for (const Block& block : blocks)
    raw.push_back({block.place.first_token, block.place.tokens, block.raw});
  const absl::Status none =
      absl::ResourceExhaustedError("the device encodes no more");
  absl::StatusOr<std::vector<EncodedBlock>> encoded = none;
  if (encoder_.lane_ != nullptr)
    encoded = encoder_.lane_->Encode(raw, encoder_.options_.step);
  if (!encoded.ok()) {
    if (encoder_.lane_ != nullptr) {
      encoder_.log_->Warn(Failure::kStore,
                          absl::StrCat("blocks are encoded on the CPU from now "
                                       "on, since the device does "
                                       "not: ",
                                       encoded.status().message()));
    }
    encoder_.ready_ = false;
    encoder_.lane_.reset();
    return std::vector<absl::StatusOr<Bytes>>(blocks.size(), none);
  }
  std::vector<absl::StatusOr<Bytes>> frames;
  for (size_t i = 0; i < blocks.size(); ++i)
    frames.push_back(Seal(blocks[i], (*encoded)[i]));
  return frames;
}

absl::StatusOr<Bytes> DeviceEncoder::Turn::Seal(
    const Block& block, const EncodedBlock& encoded) const {
  if (!encoded.status.ok()) return encoded.status;
  // The guard's finer steps are the CPU's to try; a loss that is no number is
  // over every bound.
  const float bound = encoder_.options_.loss_own_max;
  if (!(encoded.loss >= 0) || (bound > 0 && encoded.loss > bound)) {
    return absl::ResourceExhaustedError("a block over its bound of loss");
  }
  return encoder_.codec_.Seal(block.place, encoder_.options_.step, encoded.loss,
                              block.loss_inherited, encoded.section_bytes,
                              encoded.frame);
}

}  // namespace latentkv
