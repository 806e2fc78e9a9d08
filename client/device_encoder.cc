#include "client/device_encoder.h"

#include <cmath>
#include <exception>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/niceness.h"
#include "core/frame.h"

namespace latentkv {

DeviceEncoder::DeviceEncoder(std::shared_ptr<Device> device, const Codec* codec,
                             const EncodeOptions& options, FailureLog* log)
    : device_(std::move(device)),
      codec_(*codec),
      options_(options),
      log_(log),
      thread_([this] { Open(); }) {}

void DeviceEncoder::Close() {
  closing_ = true;
  if (thread_.joinable()) thread_.join();
  std::lock_guard<std::mutex> lock(mutex_);
  ready_ = false;
  lane_.reset();
}

void DeviceEncoder::Open() try {
  GiveWayToTheEngine();
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
} catch (const std::exception& error) {
  log_->Info(absl::StrCat("blocks are encoded on the CPU: ", error.what()));
}

std::unique_ptr<DeviceEncoder::Turn> DeviceEncoder::TakeTurn() {
  return ready_ ? std::make_unique<Turn>(this) : nullptr;
}

std::vector<absl::StatusOr<Bytes>> DeviceEncoder::Turn::Encode(
    absl::Span<const Block> blocks) {
  std::vector<absl::StatusOr<Bytes>> frames(
      blocks.size(), absl::ResourceExhaustedError("left to the CPU"));
  std::vector<size_t> left(blocks.size());
  std::iota(left.begin(), left.end(), 0);
  std::vector<std::optional<float>> surprises(blocks.size());
  const float step = encoder_.options_.step;
  // A few of the channels let most pass; what they would not is measured well
  // before it costs more bytes.
  bool goes_on =
      EncodeAt(step, LossChannels::kSome, blocks, &surprises, &left, &frames);
  for (int halvings = 0; halvings <= kGuardHalvings && goes_on; ++halvings) {
    goes_on = EncodeAt(std::ldexp(step, -halvings), LossChannels::kAll, blocks,
                       &surprises, &left, &frames);
  }
  return frames;
}

bool DeviceEncoder::Turn::EncodeAt(float step, LossChannels measured,
                                   absl::Span<const Block> blocks,
                                   std::vector<std::optional<float>>* surprises,
                                   std::vector<size_t>* left,
                                   std::vector<absl::StatusOr<Bytes>>* frames) {
  if (encoder_.lane_ == nullptr || left->empty()) return false;
  std::vector<RawBlock> raw;
  for (const size_t i : *left) {
    const Block& block = blocks[i];
    raw.push_back({block.place.first_token, block.place.tokens, block.raw});
  }
  const absl::StatusOr<std::vector<EncodedBlock>> encoded =
      encoder_.lane_->Encode(raw, step, measured);
  // Of memory that there may be again.
  if (absl::IsResourceExhausted(encoded.status())) {
    encoder_.log_->Warn(Failure::kStore,
                        absl::StrCat("a batch is encoded on the CPU: ",
                                     encoded.status().message()));
    return false;
  }
  if (!encoded.ok()) {
    encoder_.log_->Warn(
        Failure::kStore,
        absl::StrCat("blocks are encoded on the CPU from now on, since the "
                     "device does not: ",
                     encoded.status().message()));
    encoder_.ready_ = false;
    encoder_.lane_.reset();
    return false;
  }
  std::vector<size_t> over;
  for (size_t at = 0; at < left->size(); ++at) {
    const size_t i = (*left)[at];
    const EncodedBlock& one = (*encoded)[at];
    if (!one.status.ok()) continue;  // At a finer step even more so.
    std::optional<float>& surprise = (*surprises)[i];
    if (!surprise.has_value()) {
      surprise = encoder_.codec_.SurpriseOf(blocks[i].place.first_token, step,
                                            one.section_bytes, one.frame);
    }
    const float loss = one.loss * *surprise;
    if (IsOver(loss)) {
      over.push_back(i);
      continue;
    }
    (*frames)[i] = encoder_.codec_.Seal(blocks[i].place, step, loss,
                                        blocks[i].loss_inherited,
                                        one.section_bytes, one.frame);
  }
  *left = std::move(over);
  return true;
}

// A loss that is no number is over every bound.
bool DeviceEncoder::Turn::IsOver(float loss) const {
  const float bound = encoder_.options_.loss_own_max;
  return !std::isfinite(loss) || (bound > 0 && loss > bound);
}

}  // namespace latentkv
