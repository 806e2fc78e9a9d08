// A basis in device memory, packed for the restore's kernels.
#ifndef LATENTKV_KERNELS_CUDA_DEVICE_BASIS_H_
#define LATENTKV_KERNELS_CUDA_DEVICE_BASIS_H_

#include <cuda.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/geometry.h"
#include "kernels/basis_view.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/restore_product.h"
#include "kernels/cuda/restore_steps.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/heads.h"

namespace latentkv::cuda {

struct DeviceGroup {
  uint32_t first_layer = 0, last_layer = 0;
  uint32_t rank = 0, own_tiles = 0;
  uint32_t column = 0;  // Of its latents.
  uint32_t tile_count = 0;
  DeviceArray<ProductTile> tiles;
  // As ProductParams has them.
  DeviceArray<float> mean, feature_scale, row_scale;
  DeviceArray<int8_t> decoder;  // [tile_count * kTileChannels][columns]
  CUtensorMap map;
};

// Of a group's sections.
struct SectionBytes {
  uint32_t exact_token;  // A token's values in all layers of the group.
  uint32_t sinks;        // That are stored.
};

// Of the device that was current when it was made. Thread-safe.
class DeviceBasis {
 public:
  // Waits for the device. `view` is used until it returns, but for
  // view.classes, which is kept, and view.geometry, which must outlive the
  // basis. Of each layer `heads` alone are restored, to pages that begin with
  // their first; empty: all. Unimplemented for a basis that the kernels do not
  // take, ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<DeviceBasis>> Create(
      const BasisView& view, absl::Span<const HeadRange> heads = {});

  const Geometry& geometry() const { return *geometry_; }
  DType dtype() const { return geometry_->layers[0].dtype; }
  const std::vector<DeviceGroup>& groups() const { return groups_; }
  uint32_t inherited_rank() const { return inherited_rank_; }
  uint32_t inherited_tiles() const {
    return (inherited_rank_ + kRankTile - 1) / kRankTile;
  }
  uint32_t feature_tiles() const {
    return (dims_ * history_ + kRankTile - 1) / kRankTile;
  }
  uint32_t latent_stride() const { return latent_stride_; }
  uint32_t vocabulary() const { return vocabulary_; }
  uint32_t dims() const { return dims_; }
  uint32_t history() const { return history_; }
  const int8_t* embedding() const { return embedding_.data(); }
  const uint8_t* known_sinks() const { return known_sinks_.data(); }
  // What a product with `group` takes from the basis; the rest is the batch's.
  ProductParams Product(uint32_t group) const;
  // Where the sinks of `group` begin among known sinks number `index`.
  uint32_t SinkOffset(uint32_t index, uint32_t group) const {
    return index * sink_bytes_ + sink_offsets_[group];
  }
  const DecodeGroup* decode_groups() const { return decode_groups_.data(); }
  SectionBytes BytesOf(uint32_t group) const { return bytes_of_groups_[group]; }
  const DecodeTables& tables() const { return tables_; }
  const uint32_t* columns() const { return columns_.data(); }
  const LayerShape* layers() const { return layers_.data(); }
  const std::vector<uint32_t>& rotary_of_layer() const {
    return rotary_of_layer_;
  }
  // Layers that rotate differently, by the index of their table.
  const std::vector<uint32_t>& rotary_layers() const { return rotary_layers_; }

  // Makes it where it is not there yet. ResourceExhausted behind kModelsMax.
  absl::StatusOr<StepModel> Model(uint32_t group, float step);

  // Forgets models where there are many. No kernel may use one that runs.
  void MakeRoomForModels();

  // Of device memory, but for step models: kilobytes each.
  uint64_t bytes() const { return bytes_; }

 private:
  // Three steps of a guard for each of a dozen profiles, in as many groups as
  // models of today have.
  static constexpr size_t kModelsMax = 36 * 32;
  struct OwnedModel {
    DeviceArray<uint8_t> classes;
    DeviceArray<uint32_t> thresholds;
  };
  DeviceBasis() = default;
  absl::Status MakeTables(const LatentTables& tables);
  absl::Status MakeGroup(const BasisView& view, uint32_t index);
  absl::Status MakeSmall(const BasisView& view);

  const Geometry* geometry_ = nullptr;
  std::vector<HeadRange> heads_;  // Of each layer.
  std::vector<DeviceGroup> groups_;
  uint32_t inherited_rank_ = 0, vocabulary_ = 0, dims_ = 0, history_ = 0,
           latent_stride_ = 0, sink_bytes_ = 0;
  std::vector<uint32_t> sink_offsets_;
  std::vector<SectionBytes> bytes_of_groups_;
  std::vector<uint32_t> rotary_of_layer_, rotary_layers_;
  DeviceArray<int8_t> embedding_;
  DeviceArray<uint8_t> known_sinks_, symbols_;
  DeviceArray<uint32_t> ranges_, columns_;
  DeviceArray<DecodeImage> image_;
  DeviceArray<DecodeGroup> decode_groups_;
  DeviceArray<LayerShape> layers_;
  DecodeTables tables_ = {};
  uint64_t bytes_ = 0;
  std::array<uint32_t, kLatentClasses> expected_{};
  std::function<std::vector<uint8_t>(uint32_t, float)> classes_;
  std::mutex mutex_;
  std::map<std::pair<uint32_t, float>, OwnedModel> models_;  // Under mutex_.
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_DEVICE_BASIS_H_
