#include "kernels/cuda/device_encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <thread>

#include "kernels/cuda/product_tiles.h"
#include "kernels/cuda/restore_product.h"

namespace latentkv::cuda {
namespace {

uint32_t Tiles(uint32_t rank) { return (rank + kRankTile - 1) / kRankTile; }

std::vector<float> Ordered(absl::Span<const float> values,
                           const std::vector<int32_t>& order) {
  std::vector<float> ordered(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    ordered[i] = order[i] < 0 ? 0.0f : values[order[i]];
  return ordered;
}

// A group on the host.
struct HostGroup {
  absl::Status status;
  std::vector<float> root_weight, unweigh, sensitivity, column_scale;
  std::vector<int8_t> encoder;
  uint32_t rows = 0, columns = 0;
};

// The channel of each column of the encoder: chunks of a tile in order, as
// residuals have them.
std::vector<int32_t> ChannelsOfColumns(const ProductTiles& tiles) {
  std::vector<int32_t> channels;
  for (size_t tile = 0; tile < tiles.tiles.size(); ++tile) {
    for (uint32_t at = 0; at < kTileChannels; ++at) {
      const uint32_t chunk = at / kChunkChannels, k = at % kChunkChannels;
      // Row 8 i + 2 (chunk % 4) + e of the decoder's tile, where i = 4 (chunk /
      // 4) + k / 2 and e = k % 2.
      const uint32_t row =
          8 * (chunk / 4 * 4 + k / 2) + 2 * (chunk % 4) + k % 2;
      channels.push_back(tiles.channels[tile * kTileChannels + row]);
    }
  }
  return channels;
}

HostGroup MakeHostGroup(const BasisView& view, const DeviceBasis& basis,
                        uint32_t index) {
  const BasisGroupView& from = view.groups[index];
  HostGroup group;
  std::vector<float> root(from.channels), unweigh(from.channels);
  for (uint32_t c = 0; c < from.channels; ++c) {
    root[c] = std::sqrt(from.weight[c]);
    unweigh[c] = root[c] > 0 ? 1 / root[c] : 0;
    if (root[c] == 0 && from.sensitivity[c] > 0) {
      group.status = absl::UnimplementedError(
          "a channel without weight that a loss depends on: encoded on the "
          "CPU");
      return group;
    }
  }
  absl::StatusOr<ProductTiles> tiles =
      MakeProductTiles(basis.geometry(), from.first_layer, from.last_layer,
                       basis.rotary_of_layer());
  absl::StatusOr<std::vector<float>> encoder = view.encoder(index);
  for (const absl::Status& status : {tiles.status(), encoder.status()})
    group.status.Update(status);
  if (!group.status.ok()) return group;
  group.root_weight = Ordered(root, tiles->factors);
  group.unweigh = Ordered(unweigh, tiles->factors);
  group.sensitivity = Ordered(from.sensitivity, tiles->factors);

  const std::vector<int32_t> channels = ChannelsOfColumns(*tiles);
  group.rows = Tiles(from.rank) * kRankTile;
  group.columns = channels.size();
  group.column_scale.resize(group.rows);
  const auto value = [&](uint32_t r, int32_t c) {
    return (*encoder)[size_t(c) * from.rank + r] * unweigh[c];
  };
  for (uint32_t c = 0; c < from.channels; ++c) {
    for (uint32_t r = 0; r < from.rank; ++r) {
      group.column_scale[r] =
          std::max(group.column_scale[r], std::fabs(value(r, c)) / 127);
    }
  }
  // Quotients by a subnormal or infinite scale can pass 127; no basis that was
  // calibrated has one.
  for (float& scale : group.column_scale)
    if (!std::isnormal(scale)) scale = 0;
  group.encoder.resize(size_t{group.rows} * group.columns);
  for (uint32_t n = 0; n < group.rows; ++n) {
    // What ProjectMaps says of the order of rows.
    const uint32_t r = n / kRankTile * kRankTile + n % 8 / 2 * 32 +
                       n % kRankTile / 8 * 2 + n % 2;
    if (r >= from.rank || group.column_scale[r] == 0) continue;
    for (uint32_t at = 0; at < group.columns; ++at) {
      const float whole =
          channels[at] < 0
              ? 0
              : std::nearbyint(value(r, channels[at]) / group.column_scale[r]);
      group.encoder[size_t{n} * group.columns + at] =
          static_cast<int8_t>(whole);
    }
  }
  return group;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceEncoder>> DeviceEncoder::Create(
    const BasisView& view, const DeviceBasis& basis,
    const std::function<bool()>& cancelled) {
  const uint32_t count = view.groups.size();
  std::vector<HostGroup> hosts(count);
  std::atomic<uint32_t> next = 0;
  std::atomic<bool> out_of_memory = false;
  const auto work = [&] {
    for (uint32_t g = next++; g < count && !cancelled(); g = next++) {
      try {
        hosts[g] = MakeHostGroup(view, basis, g);
      } catch (const std::exception&) {
        out_of_memory = true;
      }
    }
  };
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  threads.reserve(cores);
  try {
    for (uint32_t i = 1; i < std::min(count, cores); ++i)
      threads.emplace_back(work);
  } catch (const std::exception&) {
    // As many as can be had will do.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (out_of_memory)
    return absl::ResourceExhaustedError("no memory to make encoders in");
  if (cancelled())
    return absl::CancelledError("encoders are not wanted any more");

  std::unique_ptr<DeviceEncoder> encoder(new DeviceEncoder());
  encoder->live_rank_ = view.live_rank;
  absl::Status status;
  const auto copy = [&]<typename T>(const std::vector<T>& values,
                                    DeviceArray<T>* array) {
    if (!status.ok()) return;
    absl::StatusOr<DeviceArray<T>> made = DeviceArray<T>::Copy(values);
    status.Update(made.status());
    if (!made.ok()) return;
    *array = *std::move(made);
    encoder->bytes_ += array->bytes();
  };
  const auto& limits = view.tables->magnitude_max;
  copy(std::vector<uint8_t>(limits.begin(), limits.end()),
       &encoder->magnitude_max_);
  for (HostGroup& host : hosts) {
    EncoderGroup group;
    status.Update(host.status);
    copy(host.root_weight, &group.root_weight);
    copy(host.unweigh, &group.unweigh);
    copy(host.sensitivity, &group.sensitivity);
    copy(host.column_scale, &group.column_scale);
    copy(host.encoder, &group.encoder);
    if (!status.ok()) return status;
    absl::StatusOr<CUtensorMap> map = MakeProductMap(
        group.encoder.data(), host.rows, host.columns, kDecoderRows);
    if (!map.ok()) return map.status();
    group.map = *map;
    encoder->groups_.push_back(std::move(group));
    host = {};
  }
  return encoder;
}

}  // namespace latentkv::cuda
