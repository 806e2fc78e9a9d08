#include <algorithm>
#include <utility>

#include "kernels/cuda/rotary_cache.h"
#include "kernels/rotary.h"

namespace latentkv::cuda {

absl::Status RotaryCache::Reach(uint32_t positions) {
  if (positions <= positions_) return absl::OkStatus();
  positions = std::max(positions, positions_ + positions_ / 2);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const RotaryTable table =
        MakeRotaryTable(geometry_.layers[layers_[i]], 0, positions);
    absl::StatusOr<DeviceArray<float>> cosine =
        DeviceArray<float>::Copy(table.cosine);
    absl::StatusOr<DeviceArray<float>> sine =
        DeviceArray<float>::Copy(table.sine);
    if (!cosine.ok() || !sine.ok())
      return cosine.ok() ? sine.status() : cosine.status();
    const float scale = geometry_.layers[layers_[i]].rotary_scale;
    tables_[i] = {*std::move(cosine), *std::move(sine), table.pairs,
                  1 / (scale * scale)};
  }
  positions_ = positions;
  return absl::OkStatus();
}

std::vector<DeviceRotary> RotaryCache::tables() const {
  std::vector<DeviceRotary> tables;
  for (const Table& table : tables_)
    tables.push_back(
        {table.cosine.data(), table.sine.data(), table.pairs, table.undo});
  return tables;
}

uint64_t RotaryCache::bytes() const {
  uint64_t bytes = 0;
  for (const Table& table : tables_)
    bytes += table.cosine.bytes() + table.sine.bytes();
  return bytes;
}

}  // namespace latentkv::cuda
