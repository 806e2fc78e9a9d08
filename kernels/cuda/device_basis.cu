#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_basis.h"
#include "kernels/cuda/product_tiles.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kPackThreads = 256;

uint32_t Tiles(uint32_t rank) { return (rank + kRankTile - 1) / kRankTile; }

// packed[n][k] = rows[row_of_column[k]][channel_of_row[n]]; 0 where either is
// negative. A thread a decoder row.
__global__ void PackKernel(const int8_t* rows, uint32_t channels,
                           const int32_t* channel_of_row,
                           const int32_t* row_of_column, uint32_t row_count,
                           uint32_t columns, int8_t* packed) {
  const uint32_t n = blockIdx.x * kPackThreads + threadIdx.x;
  if (n >= row_count) return;
  const int32_t channel = channel_of_row[n];
  for (uint32_t k = blockIdx.y; k < columns; k += gridDim.y) {
    const int32_t row = row_of_column[k];
    packed[size_t{n} * columns + k] =
        row < 0 || channel < 0 ? int8_t{0}
                               : rows[size_t(row) * channels + channel];
  }
}

std::vector<float> Ordered(absl::Span<const float> values,
                           const std::vector<int32_t>& order) {
  std::vector<float> ordered(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    ordered[i] = order[i] < 0 || values.empty() ? 0.0f : values[order[i]];
  return ordered;
}

// Makes arrays one after the other, and counts their bytes, until one cannot be
// had.
class Keeper {
 public:
  explicit Keeper(uint64_t* bytes) : bytes_(*bytes) {}
  template <typename T>
  void Keep(absl::StatusOr<DeviceArray<T>> made, DeviceArray<T>* array) {
    if (!made.ok()) {
      status_.Update(made.status());
      return;
    }
    *array = *std::move(made);
    bytes_ += array->bytes();
  }
  template <typename T>
  void Copy(absl::Span<const T> values, DeviceArray<T>* array) {
    if (status_.ok()) Keep(DeviceArray<T>::Copy(values), array);
  }
  const absl::Status& status() const { return status_; }

 private:
  uint64_t& bytes_;
  absl::Status status_;
};

bool RotateAlike(const LayerGeometry& a, const LayerGeometry& b) {
  return a.rotary_dim == b.rotary_dim && a.rotary_scale == b.rotary_scale &&
         a.inverse_frequencies == b.inverse_frequencies;
}

// Decoder rows first, then those of features: which of them each column of a
// packed decoder is.
std::vector<int32_t> RowsOfColumns(const DeviceBasis& basis,
                                   const BasisGroupView& group, uint32_t index,
                                   uint32_t features) {
  const uint32_t inherited = basis.inherited_rank();
  std::vector<int32_t> rows;
  const auto add = [&](int32_t first, uint32_t count, uint32_t tiles) {
    for (uint32_t k = 0; k < tiles * kRankTile; ++k)
      rows.push_back(k < count ? first + static_cast<int32_t>(k) : -1);
  };
  add(group.rank + index * inherited, features, Tiles(features));
  add(0, group.rank, Tiles(group.rank));
  for (uint32_t g = 0; g < index; ++g)
    add(group.rank + g * inherited, inherited, Tiles(inherited));
  return rows;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceBasis>> DeviceBasis::Create(
    const BasisView& view, absl::Span<const HeadRange> heads) {
  std::unique_ptr<DeviceBasis> basis(new DeviceBasis());
  basis->heads_.assign(heads.begin(), heads.end());
  basis->geometry_ = view.geometry;
  basis->classes_ = view.classes;
  basis->inherited_rank_ = view.inherited_rank;
  basis->vocabulary_ = view.vocabulary;
  basis->dims_ = view.dims;
  basis->history_ = view.history;
  const std::vector<LayerGeometry>& layers = view.geometry->layers;
  for (const LayerGeometry& layer : layers) {
    if (layer.dtype != layers[0].dtype) {
      return absl::UnimplementedError(
          "layers of different types are not restored on a device");
    }
    if (heads.empty()) basis->heads_.push_back({0, layer.kv_heads});
    const auto like = [&](uint32_t l) { return RotateAlike(layers[l], layer); };
    const auto known = std::find_if(basis->rotary_layers_.begin(),
                                    basis->rotary_layers_.end(), like);
    basis->rotary_of_layer_.push_back(known - basis->rotary_layers_.begin());
    if (known == basis->rotary_layers_.end())
      basis->rotary_layers_.push_back(&layer - layers.data());
  }
  absl::Status status = basis->MakeTables(*view.tables);
  for (uint32_t g = 0; g < view.groups.size() && status.ok(); ++g)
    status = basis->MakeGroup(view, g);
  if (status.ok()) status = basis->MakeSmall(view);
  if (!status.ok()) return status;
  return basis;
}

absl::Status DeviceBasis::MakeTables(const LatentTables& tables) {
  std::vector<uint8_t> symbols(tables.slots.size());
  for (size_t i = 0; i < symbols.size(); ++i)
    symbols[i] = static_cast<uint8_t>(tables.slots[i]);
  std::vector<DecodeImage> image(1);
  absl::Status status = FillDecodeImage(tables, image.data());
  if (!status.ok()) return status;
  expected_ = tables.expected;
  Keeper keeper(&bytes_);
  keeper.Copy<DecodeImage>(image, &image_);
  keeper.Copy<uint8_t>(symbols, &symbols_);
  keeper.Copy<uint32_t>(tables.ranges, &ranges_);
  tables_ = {image_.data(), symbols_.data(), ranges_.data()};
  return keeper.status();
}

absl::Status DeviceBasis::MakeGroup(const BasisView& view, uint32_t index) {
  const BasisGroupView& from = view.groups[index];
  DeviceGroup group;
  group.first_layer = from.first_layer;
  group.last_layer = from.last_layer;
  group.rank = from.rank;
  group.own_tiles = Tiles(from.rank);
  group.column = latent_stride_;
  // What is inherited of a group of few latents is zeros behind them.
  latent_stride_ += std::max(group.own_tiles, inherited_tiles()) * kRankTile;
  if (group.own_tiles > kRankTilesMax ||
      from.last_layer - from.first_layer > kGroupLayersMax) {
    return absl::UnimplementedError(
        absl::StrCat("a group of rank ", from.rank, " and ",
                     from.last_layer - from.first_layer,
                     " layers is not restored on a device"));
  }
  absl::StatusOr<ProductTiles> tiles = MakeProductTiles(
      *geometry_, from.first_layer, from.last_layer, rotary_of_layer_, heads_);
  if (!tiles.ok()) return tiles.status();
  group.tile_count = tiles->tiles.size();
  Keeper keeper(&bytes_);
  keeper.Copy<ProductTile>(tiles->tiles, &group.tiles);
  keeper.Copy<float>(Ordered(from.mean, tiles->factors), &group.mean);
  keeper.Copy<float>(Ordered(from.feature_scale, tiles->factors),
                     &group.feature_scale);
  keeper.Copy<float>(Ordered(from.row_scale, tiles->factors), &group.row_scale);
  const std::vector<int32_t> row_of_column =
      RowsOfColumns(*this, from, index, dims_ * history_);
  const uint32_t rows = tiles->channels.size(), columns = row_of_column.size();
  keeper.Keep(DeviceArray<int8_t>::Make(size_t{rows} * columns),
              &group.decoder);
  if (!keeper.status().ok()) return keeper.status();
  std::vector<int8_t> all(from.decoder.begin(), from.decoder.end());
  all.insert(all.end(), from.feature_rows.begin(), from.feature_rows.end());
  absl::StatusOr<DeviceArray<int8_t>> unpacked = DeviceArray<int8_t>::Copy(all);
  absl::StatusOr<DeviceArray<int32_t>> channel_of_row =
      DeviceArray<int32_t>::Copy(tiles->channels);
  absl::StatusOr<DeviceArray<int32_t>> row =
      DeviceArray<int32_t>::Copy(row_of_column);
  for (const absl::Status& made :
       {unpacked.status(), channel_of_row.status(), row.status()}) {
    if (!made.ok()) return made;
  }
  const dim3 grid((rows + kPackThreads - 1) / kPackThreads,
                  std::min(columns, 64u));
  // Neither on the default stream nor by waiting for the device, both of which
  // would end what the engine captures.
  const absl::Status status = OnOwnStream([&](cudaStream_t stream) {
    PackKernel<<<grid, kPackThreads, 0, stream>>>(
        unpacked->data(), from.channels, channel_of_row->data(), row->data(),
        rows, columns, group.decoder.data());
    return cudaGetLastError();
  });
  if (!status.ok()) return status;
  absl::StatusOr<CUtensorMap> map =
      MakeProductMap(group.decoder.data(), rows, columns, kDecoderRows);
  if (!map.ok()) return map.status();
  group.map = *map;
  groups_.push_back(std::move(group));
  return absl::OkStatus();
}

absl::Status DeviceBasis::MakeSmall(const BasisView& view) {
  std::vector<LayerShape> shapes;
  std::vector<uint32_t> columns, sink_bytes_of_layer, token_bytes_of_layer;
  for (const LayerGeometry& layer : geometry_->layers) {
    shapes.push_back({layer.kv_heads,
                      {layer.DimOf(true), layer.DimOf(false)},
                      heads_[shapes.size()]});
    sink_bytes_of_layer.push_back(
        kSinkTokens * (2 * layer.kv_heads * sizeof(float) + layer.Channels()));
    token_bytes_of_layer.push_back(layer.Channels() * DTypeBytes(layer.dtype));
  }
  std::vector<DecodeGroup> decode;
  for (const DeviceGroup& group : groups_) {
    DecodeGroup one = {group.rank, group.column, 0, 0};
    for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
      one.exact_token_bytes += token_bytes_of_layer[l];
      one.sink_bytes += sink_bytes_of_layer[l];
    }
    columns.push_back(group.column);
    sink_offsets_.push_back(sink_bytes_);
    sink_bytes_ += one.sink_bytes;
    bytes_of_groups_.push_back({one.exact_token_bytes, one.sink_bytes});
    decode.push_back(one);
  }
  std::vector<uint8_t> sinks;
  for (const ByteSpan known : view.known_sinks)
    sinks.insert(sinks.end(), known.begin(), known.end());
  Keeper keeper(&bytes_);
  keeper.Copy<LayerShape>(shapes, &layers_);
  keeper.Copy<uint32_t>(columns, &columns_);
  keeper.Copy<DecodeGroup>(decode, &decode_groups_);
  keeper.Copy<uint8_t>(sinks, &known_sinks_);
  keeper.Copy<int8_t>(view.embedding, &embedding_);
  return keeper.status();
}

ProductParams DeviceBasis::Product(uint32_t group) const {
  const DeviceGroup& from = groups_[group];
  ProductParams params = {};
  params.tiles = from.tiles.data();
  params.mean = from.mean.data();
  params.feature_scale = from.feature_scale.data();
  params.row_scale = from.row_scale.data();
  params.tile_count = from.tile_count;
  params.tile_step = 1;
  params.feature_tiles = feature_tiles();
  params.own_tiles = from.own_tiles;
  params.inherited_tiles = inherited_tiles();
  params.columns = columns_.data();
  params.group = group;
  params.first_part = 2 * from.first_layer;
  params.part_count = 2 * (from.last_layer - from.first_layer);
  return params;
}

void DeviceBasis::MakeRoomForModels() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (models_.size() > kModelsMax / 2) models_.clear();
}

absl::StatusOr<StepModel> DeviceBasis::Model(uint32_t group, float step) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (models_.size() >= kModelsMax && !models_.contains({group, step})) {
    return absl::ResourceExhaustedError("too many steps in use");
  }
  auto [found, fresh] = models_.try_emplace({group, step});
  OwnedModel& model = found->second;
  if (fresh) {
    std::vector<uint8_t> classes = classes_(group, step);
    std::vector<uint32_t> thresholds;
    // docs/formats/entropy.md, "Shift of a token".
    constexpr std::array<uint32_t, kActivityThresholds> kFactors = {
        17867, 21247, 25268,  30048,  35734,  42495,  50535,  60097,
        71468, 84990, 101070, 120194, 142935, 169979, 202141, 240387};
    uint64_t usual = 0;
    for (size_t r = 0; r + kContextRows <= classes.size(); r += kContextRows) {
      usual -= usual >> 3;
      for (size_t i = 0; i < kContextRows; ++i)
        usual += expected_[classes[r + i]];
      for (uint32_t factor : kFactors)
        thresholds.push_back(
            static_cast<uint32_t>(((usual + 1024) * factor + 0xffff) >> 16));
    }
    // Read by sixteens, the first before it is known whether there are any.
    classes.resize(std::max<size_t>(
                       1, (classes.size() + kContextRows - 1) / kContextRows) *
                   kContextRows);
    absl::StatusOr<DeviceArray<uint8_t>> first =
        DeviceArray<uint8_t>::Copy(classes);
    absl::StatusOr<DeviceArray<uint32_t>> second =
        DeviceArray<uint32_t>::Copy(thresholds);
    if (!first.ok() || !second.ok()) {
      models_.erase(found);
      return first.ok() ? second.status() : first.status();
    }
    model.classes = *std::move(first);
    model.thresholds = *std::move(second);
  }
  return StepModel{model.classes.data(), model.thresholds.data()};
}

}  // namespace latentkv::cuda
