#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/encode_steps.h"
#include "kernels/cuda/group_encoder.h"
#include "kernels/cuda/hopper_device.h"
#include "kernels/cuda/restore_steps.h"

namespace latentkv::cuda {
namespace {

// Tiles of channels of which kSome measures at most.
constexpr uint32_t kLossTiles = 6;

uint32_t Tiles(uint32_t rank) { return (rank + kRankTile - 1) / kRankTile; }

}  // namespace

absl::StatusOr<std::unique_ptr<GroupEncoder>> GroupEncoder::Create(
    DeviceBasis* basis, const DeviceEncoder* encoder, const RotaryCache* rotary,
    const EncodeLimits& limits) {
  const absl::StatusOr<uint32_t> multiprocessors =
      HopperMultiprocessors("encoding");
  if (!multiprocessors.ok()) return multiprocessors.status();
  if (limits.blocks_max == 0 || limits.blocks_max > kPlacedBlocksMax ||
      limits.rests_max == 0 || limits.rests_max >= kNoRest) {
    return absl::InvalidArgumentError("limits of an encoding");
  }
  std::unique_ptr<GroupEncoder> made(
      new GroupEncoder(basis, encoder, rotary, limits));
  made->multiprocessors_ = *multiprocessors;
  absl::Status status = made->Allocate();
  if (status.ok()) status = made->MakeMaps();
  if (!status.ok()) return status;
  return made;
}

absl::Status GroupEncoder::Allocate() {
  const size_t blocks = limits_.blocks_max, tokens = blocks * kBlockTokens,
               groups = basis_.groups().size();
  const uint32_t feature_columns = basis_.feature_tiles() * kRankTile;
  uint32_t tiles_max = 0;
  uint64_t shift_bytes = 0, section_bytes = 0;
  for (size_t g = 0; g < groups; ++g) {
    const DeviceGroup& group = basis_.groups()[g];
    const SectionBytes bytes = basis_.BytesOf(g);
    tiles_max = std::max(tiles_max, group.tile_count);
    shift_bytes += blocks * ((group.rank + kContextRows - 1) / kContextRows) *
                   kBlockTokens;
    section_bytes +=
        blocks * SectionRoom(group.rank, bytes.exact_token, bytes.sinks);
  }
  absl::Status status;
  const auto keep = [&](auto made, auto* array) {
    status.Update(made.status());
    if (made.ok()) *array = *std::move(made);
  };
  const auto make = [&]<typename T>(DeviceArray<T>* array, size_t size) {
    if (!status.ok()) return;
    keep(DeviceArray<T>::Make(size), array);
    bytes_ += array->bytes();
  };
  const auto mirror = [&]<typename T>(MirroredArray<T>* array, size_t size) {
    make(&array->device, size);
    if (status.ok()) keep(PinnedArray<T>::Make(size), &array->host);
  };
  mirror(&first_tokens_, blocks);
  mirror(&tokens_, blocks * (kBlockTokens + basis_.history()));
  mirror(&slots_, tokens);
  mirror(&parts_, 2 * basis_.geometry().layers.size());
  mirror(&rotaries_, basis_.rotary_layers().size());
  mirror(&coding_, groups);
  mirror(&known_sinks_, groups * blocks);
  mirror(&first_layers_, groups + 1);
  make(&features_, tokens * feature_columns);
  make(&latents_, tokens * basis_.latent_stride());
  make(&rests_, size_t{limits_.rests_max} * kBlockTokens * kRankTile);
  make(&residuals_, tokens * tiles_max * kTileChannels);
  unit_stride_ = (tokens + kTokenRows - 1) / kTokenRows * kTokenRows;
  make(&units_, size_t{(tiles_max + kResidualTiles - 1) / kResidualTiles} *
                    unit_stride_);
  make(&energies_, tokens * tiles_max);
  make(&partial_losses_, blocks * tiles_max * 4);
  make(&zeros_, size_t{tiles_max} * kTileChannels);
  make(&plans_, blocks);
  make(&again_, blocks);
  make(&loss_plans_, blocks);
  make(&exact_, groups * blocks);
  make(&predicted_, groups * blocks);
  make(&sinks_, groups * blocks);
  make(&shifts_, shift_bytes);
  make(&sections_, section_bytes);
  make(&own_sums_, groups * tokens);
  make(&inherited_sums_, groups * tokens);
  make(&inherited_totals_, tokens);
  make(&has_rests_, groups * blocks);
  make(&rest_count_, 1);
  make(&again_counts_, groups);
  make(&rest_tiles_, groups * blocks * kRankTilesMax);
  make(&section_offsets_, groups * blocks);
  mirror(&section_bytes_, groups * blocks);
  mirror(&faults_, blocks);
  mirror(&losses_, groups * blocks);
  mirror(&frames_, blocks);
  if (!status.ok()) return status;
  return OnOwnStream([&](cudaStream_t stream) {
    // Units of whole boxes are read, of which the last may have fewer tokens.
    const cudaError_t error =
        cudaMemsetAsync(units_.data(), 0, units_.bytes(), stream);
    return error != cudaSuccess
               ? error
               : cudaMemsetAsync(zeros_.data(), 0, zeros_.bytes(), stream);
  });
}

absl::Status GroupEncoder::MakeMaps() {
  const size_t tokens = size_t{limits_.blocks_max} * kBlockTokens,
               groups = basis_.groups().size();
  const uint32_t feature_columns = basis_.feature_tiles() * kRankTile;
  absl::Status status;
  const auto map = [&](const auto* matrix, uint64_t rows, uint64_t columns,
                       uint32_t box_rows, CUtensorMap* result) {
    absl::StatusOr<CUtensorMap> made = MakeProductMap(
        reinterpret_cast<const int8_t*>(matrix), rows, columns, box_rows);
    if (made.ok()) *result = *made;
    status.Update(made.status());
  };
  map(latents_.data(), tokens, basis_.latent_stride(), kTokenRows,
      &latent_map_);
  map(rests_.data(), uint64_t{limits_.rests_max} * kBlockTokens, kRankTile,
      kRestRows, &rest_map_);
  if (feature_columns > 0)
    map(features_.data(), tokens, feature_columns, kTokenRows, &feature_map_);
  residual_maps_.resize(groups);
  for (size_t g = 0; g < groups; ++g) {
    map(residuals_.data(), tokens,
        uint64_t{basis_.groups()[g].tile_count} * kTileChannels, kTokenRows,
        &residual_maps_[g]);
  }
  return status;
}

absl::Status GroupEncoder::Encode(absl::Span<const RestoreBlock> blocks,
                                  absl::Span<const DevicePart> parts,
                                  float step, LossChannels measured,
                                  uint8_t* room, uint64_t room_bytes,
                                  cudaStream_t stream) {
  absl::Status status = Begin(blocks, parts, step, stream);
  for (uint32_t g = 0; g < basis_.groups().size() && status.ok(); ++g) {
    status = FormGroup(g, stream);
    if (status.ok()) status = ProjectGroup(g, stream);
    if (status.ok()) status = MeasureGroup(g, measured, stream);
  }
  if (status.ok()) status = Finish(room, room_bytes, stream);
  return status;
}

absl::Status GroupEncoder::TakeBlocks(absl::Span<const RestoreBlock> blocks) {
  const uint32_t groups = basis_.groups().size();
  const uint32_t history = std::max(1u, basis_.history());
  uint32_t* token = tokens_.host.data();
  for (uint32_t b = 0; b < blocks_; ++b) {
    const RestoreBlock& block = blocks[b];
    const uint64_t end = uint64_t{block.first_token} + kBlockTokens;
    if (end > rotary_.positions() || block.tokens.size() != end ||
        block.slots.size() != kBlockTokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("a block from token ", block.first_token, " on with ",
                       block.tokens.size(), " tokens of its chain and ",
                       block.slots.size(), " slots"));
    }
    first_tokens_.host[b] = block.first_token;
    for (uint32_t back = history - 1; back > 0; --back) {
      *token++ = back <= block.first_token
                     ? block.tokens[block.first_token - back]
                     : kNoToken;
    }
    token = std::copy_n(block.tokens.end() - kBlockTokens, kBlockTokens, token);
    std::copy_n(block.slots.begin(), kBlockTokens,
                slots_.host.data() + size_t{b} * kBlockTokens);
    for (uint32_t g = 0; g < groups; ++g) {
      const bool known = block.first_token == 0 && block.known_sinks >= 0;
      known_sinks_.host[Section(g) + b] =
          known ? static_cast<int32_t>(basis_.SinkOffset(block.known_sinks, g))
                : -1;
    }
  }
  return absl::OkStatus();
}

absl::Status GroupEncoder::TakeModels() {
  const uint32_t groups = basis_.groups().size();
  uint64_t shifts = 0, sections = 0;
  for (uint32_t g = 0; g < groups; ++g) {
    const DeviceGroup& group = basis_.groups()[g];
    absl::StatusOr<StepModel> model = basis_.Model(g, step_);
    if (!model.ok()) return model.status();
    const SectionBytes bytes = basis_.BytesOf(g);
    const uint32_t live = std::min(group.rank, encoder_.LiveRank(g, step_));
    const uint64_t room = SectionRoom(live, bytes.exact_token, bytes.sinks);
    coding_.host[g] = {group.first_layer,
                       group.last_layer,
                       live,
                       group.column,
                       bytes.exact_token,
                       bytes.sinks,
                       *model,
                       shifts,
                       sections,
                       room};
    shifts += uint64_t{blocks_} * ((live + kContextRows - 1) / kContextRows) *
              kBlockTokens;
    sections += blocks_ * room;
    first_layers_.host[g] = group.first_layer;
    first_layers_.host[g + 1] = group.last_layer;
  }
  return absl::OkStatus();
}

absl::Status GroupEncoder::Upload(cudaStream_t stream) {
  const uint32_t groups = basis_.groups().size();
  const size_t history = std::max(1u, basis_.history());
  absl::Status status = first_tokens_.Upload(0, blocks_, stream);
  status.Update(
      tokens_.Upload(0, blocks_ * (kBlockTokens + history - 1), stream));
  status.Update(slots_.Upload(0, size_t{blocks_} * kBlockTokens, stream));
  status.Update(parts_.Upload(0, parts_.device.size(), stream));
  status.Update(rotaries_.Upload(0, rotaries_.device.size(), stream));
  status.Update(coding_.Upload(0, groups, stream));
  status.Update(known_sinks_.Upload(0, Section(groups), stream));
  status.Update(first_layers_.Upload(0, groups + 1, stream));
  const auto fill = [&](const auto& array, int value, size_t count) {
    status.Update(
        CudaStatus(cudaMemsetAsync(array.data(), value,
                                   count * sizeof(*array.data()), stream),
                   "clearing"));
  };
  fill(rests_, 0, rests_.size());
  fill(rest_tiles_, 0xff, Section(groups) * kRankTilesMax);
  static_assert(kNoRest == 0xffff && kZeroRest == 0);
  fill(exact_, 0, Section(groups));
  fill(has_rests_, 0, Section(groups));
  fill(again_counts_, 0, groups);
  fill(own_sums_, 0, Section(groups) * kBlockTokens);
  fill(inherited_sums_, 0, Section(groups) * kBlockTokens);
  fill(inherited_totals_, 0, size_t{blocks_} * kBlockTokens);
  fill(faults_.device, 0, blocks_);
  fill(section_bytes_.device, 0, Section(groups));
  return status;
}

absl::Status GroupEncoder::Begin(absl::Span<const RestoreBlock> blocks,
                                 absl::Span<const DevicePart> parts, float step,
                                 cudaStream_t stream) {
  if (blocks.size() > limits_.blocks_max ||
      parts.size() != 2 * basis_.geometry().layers.size() || !(step > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(blocks.size(), " blocks, ", parts.size(),
                     " parts of pages and step ", step));
  }
  basis_.MakeRoomForModels();
  blocks_ = blocks.size();
  step_ = step;
  absl::Status status = TakeBlocks(blocks);
  if (status.ok()) status = TakeModels();
  if (!status.ok()) return status;
  std::copy(parts.begin(), parts.end(), parts_.host.data());
  const std::vector<DeviceRotary> rotaries = rotary_.tables();
  std::copy(rotaries.begin(), rotaries.end(), rotaries_.host.data());
  status = Upload(stream);
  if (!status.ok()) return status;
  status = PlanFirst(blocks_, step, first_tokens_.data(), plans_.data(),
                     rest_count_.data(), stream);
  if (!status.ok() || basis_.feature_tiles() == 0) return status;
  return MakeFeatures({basis_.embedding(), basis_.vocabulary(), basis_.dims(),
                       basis_.history(), tokens_.data(), blocks_,
                       features_.data(), basis_.feature_tiles() * kRankTile},
                      stream);
}

ProductParams GroupEncoder::Product(uint32_t group) const {
  ProductParams params = basis_.Product(group);
  params.factor = encoder_.groups()[group].root_weight.data();
  params.blocks = blocks_;
  params.plans = plans_.data();
  params.rest_tiles = rest_tiles_.data();
  params.slots = slots_.data();
  params.parts = parts_.data();
  params.rotaries = rotaries_.data();
  return params;
}

// What prediction leaves, and again without it where it does not help.
absl::Status GroupEncoder::FormGroup(uint32_t group, cudaStream_t stream) {
  const uint32_t tiles = basis_.groups()[group].tile_count;
  ProductParams product = Product(group);
  unsigned long long* exact = exact_.data() + Section(group);
  const ResidualParams residuals = {
      residuals_.data(), Stride(group),    units_.data(), unit_stride_,
      1 / step_,         energies_.data(), exact,         faults_.data()};
  absl::Status status = FormResiduals(Maps(group), product, residuals,
                                      basis_.dtype(), multiprocessors_, stream);
  status.Update(
      JudgePredictions({blocks_, tiles, energies_.data(), exact,
                        predicted_.data() + Section(group), plans_.data(),
                        again_.data(), again_counts_.data() + group},
                       stream));
  product.plans = again_.data();
  product.wanted = again_counts_.data() + group;
  status.Update(FormResiduals(Maps(group), product, residuals, basis_.dtype(),
                              multiprocessors_, stream));
  return status;
}

absl::Status GroupEncoder::ProjectGroup(uint32_t group, cudaStream_t stream) {
  const DeviceGroup& from = basis_.groups()[group];
  const EncoderGroup& encoder = encoder_.groups()[group];
  const uint32_t live = coding_.host[group].live, live_tiles = Tiles(live);
  unsigned long long* exact = exact_.data() + Section(group);
  absl::Status status;
  // Later groups inherit of all tiles.
  if (live_tiles < basis_.inherited_tiles()) {
    status.Update(
        CudaStatus(cudaMemset2DAsync(
                       latents_.data() + from.column + live_tiles * kRankTile,
                       basis_.latent_stride(), 0,
                       (basis_.inherited_tiles() - live_tiles) * kRankTile,
                       size_t{blocks_} * kBlockTokens, stream),
                   "clearing"));
  }
  if (!status.ok()) return status;
  ProjectParams project = {};
  project.blocks = blocks_;
  project.plans = plans_.data();
  project.tiles = from.tile_count;
  project.units = units_.data();
  project.unit_stride = unit_stride_;
  project.live = live;
  project.column_scale = encoder.column_scale.data();
  project.first_tokens = first_tokens_.data();
  project.latents = latents_.data();
  project.latent_stride = basis_.latent_stride();
  project.column = from.column;
  project.inherited_rank = basis_.inherited_rank();
  project.exact = exact;
  project.own_sums = own_sums_.data() + Section(group) * kBlockTokens;
  project.inherited_sums =
      inherited_sums_.data() + Section(group) * kBlockTokens;
  project.faults = faults_.data();
  project.rest_tiles = rest_tiles_.data() + Section(group) * kRankTilesMax;
  project.rests = rests_.data();
  project.rest_count = rest_count_.data();
  project.rests_max = limits_.rests_max;
  project.has_rests = has_rests_.data() + Section(group);
  status = ProjectResiduals({residual_maps_[group], encoder.map}, project,
                            multiprocessors_, stream);
  status.Update(BoundLatents(
      {group, blocks_, step_, live_tiles, from.column, latents_.data(),
       basis_.latent_stride(), project.rest_tiles, rests_.data(),
       has_rests_.data(), predicted_.data() + Section(group),
       first_tokens_.data(), faults_.data(), project.own_sums,
       project.inherited_sums, inherited_totals_.data(), exact,
       loss_plans_.data(), plans_.data()},
      stream));
  return status;
}

absl::Status GroupEncoder::MeasureGroup(uint32_t group, LossChannels measured,
                                        cudaStream_t stream) {
  const uint32_t tiles = basis_.groups()[group].tile_count;
  const EncoderGroup& encoder = encoder_.groups()[group];
  ProductParams product = Product(group);
  product.plans = loss_plans_.data();
  product.mean = zeros_.data();
  product.feature_scale = encoder.unweigh.data();
  product.factor = encoder.sensitivity.data();
  product.tile_step = measured == LossChannels::kAll
                          ? 1
                          : (tiles + kLossTiles - 1) / kLossTiles;
  // A chain that comes in small batches is measured everywhere, too.
  product.tile_offset = first_tokens_.host[0] / kTokenRows;
  const uint32_t loss_tiles = LossTiles(product);
  absl::Status status = MeasureLosses(
      Maps(group), product,
      {residuals_.data(), Stride(group), units_.data(), unit_stride_, step_,
       exact_.data() + Section(group), partial_losses_.data()},
      multiprocessors_, stream);
  const float scale = static_cast<float>(tiles) / loss_tiles / kBlockTokens;
  status.Update(SumLosses(partial_losses_.data(), blocks_, loss_tiles * 4,
                          scale, losses_.data() + Section(group), stream));
  return status;
}

absl::Status GroupEncoder::Finish(uint8_t* room, uint64_t room_bytes,
                                  cudaStream_t stream) {
  const uint32_t groups = basis_.groups().size();
  absl::Status status = MatchSinks(
      {groups, blocks_, first_layers_.data(), basis_.layers(),
       first_tokens_.data(), known_sinks_.data(), basis_.known_sinks(),
       slots_.data(), parts_.data(), sinks_.data()},
      basis_.dtype(), stream);
  CodingParams coding = {};
  coding.groups = groups;
  coding.blocks = blocks_;
  coding.group = coding_.data();
  coding.ranges = basis_.tables().ranges;
  coding.magnitude_max = encoder_.magnitude_max();
  coding.latents = latents_.data();
  coding.latent_stride = basis_.latent_stride();
  coding.rest_tiles = rest_tiles_.data();
  coding.rests = rests_.data();
  coding.exact = exact_.data();
  coding.predicted = predicted_.data();
  coding.sinks = sinks_.data();
  coding.layers = basis_.layers();
  coding.slots = slots_.data();
  coding.parts = parts_.data();
  coding.shifts = shifts_.data();
  coding.sections = sections_.data();
  coding.faults = faults_.data();
  coding.section_bytes = section_bytes_.data();
  coding.section_offsets = section_offsets_.data();
  status.Update(CodeSections(coding, basis_.dtype(), multiprocessors_, stream));
  const PlaceParams place = {groups,
                             blocks_,
                             limits_.header_bytes,
                             room_bytes,
                             section_bytes_.data(),
                             faults_.data(),
                             frames_.data()};
  status.Update(PlaceFrames(place, stream));
  status.Update(CopySections(
      {place, sections_.data(), section_offsets_.data(), room}, stream));
  const auto download = [&]<typename T>(const MirroredArray<T>& array,
                                        size_t count) {
    status.Update(CudaStatus(
        cudaMemcpyAsync(array.host.data(), array.data(), count * sizeof(T),
                        cudaMemcpyDeviceToHost, stream),
        "copying a report"));
  };
  download(section_bytes_, Section(groups));
  download(losses_, Section(groups));
  download(frames_, blocks_);
  download(faults_, blocks_);
  return status;
}

EncodeReport GroupEncoder::report() const {
  return {section_bytes_.host.data(), losses_.host.data(), frames_.host.data(),
          faults_.host.data()};
}

}  // namespace latentkv::cuda
