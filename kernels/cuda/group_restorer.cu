#include "kernels/cuda/group_restorer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/restore_steps.h"

namespace latentkv::cuda {
namespace {

__global__ void ReportKernel(const SectionState* states, const uint32_t* first_faults, uint32_t blocks,
                             GroupRestorer::Outcome* outcomes) {
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
  if (block >= blocks) return;
  const uint32_t group = first_faults[block];
  outcomes[block] = {group, group == ~0u ? kFaultNone : states[size_t{group} * blocks + block].fault};
}

}  // namespace

absl::StatusOr<std::unique_ptr<GroupRestorer>> GroupRestorer::Create(DeviceBasis* basis, const RotaryCache* rotary,
                                                                     const RestoreLimits& limits) {
  int device = 0, multiprocessors = 0, major = 0;
  absl::Status status = CudaStatus(cudaGetDevice(&device), "asking for the device");
  status.Update(CudaStatus(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                           "asking for multiprocessors"));
  status.Update(CudaStatus(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                           "asking for the compute capability"));
  if (!status.ok()) return status;
  if (major != 9) return absl::UnimplementedError("restores on a device need compute capability 9.0");
  if (limits.blocks_max == 0 || limits.rests_max == 0 || limits.rests_max >= kNoRest) return absl::InvalidArgumentError("limits of a restore");
  std::unique_ptr<GroupRestorer> restorer(new GroupRestorer(basis, rotary, limits));
  status = restorer->Allocate(multiprocessors);
  if (!status.ok()) return status;
  return restorer;
}

absl::Status GroupRestorer::Allocate(uint32_t multiprocessors) {
  multiprocessors_ = multiprocessors;
  const size_t blocks = limits_.blocks_max, tokens = blocks * kBlockTokens, groups = basis_.groups().size();
  const uint32_t feature_columns = basis_.feature_tiles() * kRankTile;
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
  make(&latents_, tokens * basis_.latent_stride());
  make(&rests_, size_t{limits_.rests_max} * kBlockTokens * kRankTile);
  make(&features_, tokens * feature_columns);
  make(&own_sums_, groups * tokens);
  make(&inherited_sums_, groups * tokens);
  make(&inherited_totals_, tokens);
  make(&first_faults_, blocks);
  mirror(&rest_count_, 1);
  mirror(&first_tokens_, blocks);
  mirror(&tokens_, blocks * (kBlockTokens + basis_.history()));
  make(&plans_, blocks);
  make(&rest_tiles_, groups * blocks * kRankTilesMax);
  mirror(&sources_, groups * blocks);
  make(&states_, groups * blocks);
  mirror(&slots_, tokens);
  mirror(&parts_, 2 * basis_.geometry().layers.size());
  mirror(&rotaries_, basis_.rotary_layers().size());
  make(&payload_, limits_.payload_bytes_max);
  make(&outcomes_, blocks);
  if (!status.ok()) return status;
  status = OnOwnStream([&](cudaStream_t stream) {
    return cudaMemsetAsync(rests_.data(), 0, kBlockTokens * kRankTile, stream);
  });
  const auto map = [&](const DeviceArray<int8_t>& matrix, uint64_t rows, uint64_t columns, uint32_t box_rows,
                       CUtensorMap* result) {
    absl::StatusOr<CUtensorMap> made = MakeProductMap(matrix.data(), rows, columns, box_rows);
    if (made.ok()) *result = *made;
    status.Update(made.status());
  };
  map(latents_, tokens, basis_.latent_stride(), kTokenRows, &latent_map_);
  map(rests_, uint64_t{limits_.rests_max} * kBlockTokens, kRankTile, kRestRows, &rest_map_);
  if (feature_columns > 0) map(features_, tokens, feature_columns, kTokenRows, &feature_map_);
  return status;
}

absl::Status GroupRestorer::Begin(absl::Span<const RestoreBlock> blocks, absl::Span<const DevicePart> parts,
                                  cudaStream_t stream) {
  if (blocks.size() > limits_.blocks_max || parts.size() != 2 * basis_.geometry().layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(blocks.size(), " blocks and ", parts.size(), " parts of pages"));
  }
  const uint32_t history = std::max(1u, basis_.history());
  basis_.MakeRoomForModels();
  blocks_ = blocks.size();
  payload_used_ = 0;
  known_sinks_.clear();
  uint32_t *token = tokens_.host.data();
  for (uint32_t b = 0; b < blocks_; ++b) {
    const RestoreBlock& block = blocks[b];
    const uint64_t end = uint64_t{block.first_token} + kBlockTokens;
    if (end > rotary_.positions() || block.tokens.size() != end || block.slots.size() != kBlockTokens) {
      return absl::InvalidArgumentError(absl::StrCat("a block from token ", block.first_token, " on with ",
                                                     block.tokens.size(), " tokens of its chain and ",
                                                     block.slots.size(), " slots"));
    }
    first_tokens_.host[b] = block.first_token;
    known_sinks_.push_back(block.first_token == 0 ? block.known_sinks : -1);
    for (uint32_t back = history - 1; back > 0; --back) {
      *token++ = back <= block.first_token ? block.tokens[block.first_token - back] : kNoToken;
    }
    token = std::copy_n(block.tokens.end() - kBlockTokens, kBlockTokens, token);
    std::copy_n(block.slots.begin(), kBlockTokens, slots_.host.data() + size_t{b} * kBlockTokens);
  }
  std::copy(parts.begin(), parts.end(), parts_.host.data());
  const std::vector<DeviceRotary> rotaries = rotary_.tables();
  std::copy(rotaries.begin(), rotaries.end(), rotaries_.host.data());
  absl::Status status = first_tokens_.Upload(0, blocks_, stream);
  status.Update(tokens_.Upload(0, token - tokens_.host.data(), stream));
  status.Update(slots_.Upload(0, size_t{blocks_} * kBlockTokens, stream));
  status.Update(parts_.Upload(0, parts.size(), stream));
  status.Update(rotaries_.Upload(0, rotaries.size(), stream));
  status.Update(CudaStatus(cudaMemsetAsync(first_faults_.data(), 0xff, first_faults_.bytes(), stream), "clearing"));
  status.Update(CudaStatus(cudaMemsetAsync(inherited_totals_.data(), 0, inherited_totals_.bytes(), stream), "clearing"));
  static_assert(kZeroRest == 0);
  rest_count_.host[0] = 1;
  status.Update(rest_count_.Upload(0, 1, stream));
  if (!status.ok() || basis_.feature_tiles() == 0) return status;
  return MakeFeatures({basis_.embedding(), basis_.vocabulary(), basis_.dims(), basis_.history(), tokens_.data(),
                       blocks_, features_.data(), basis_.feature_tiles() * kRankTile},
                      stream);
}

absl::Status GroupRestorer::Add(uint32_t group, const uint8_t* payload, uint64_t bytes,
                                absl::Span<const GroupSection> sections, cudaStream_t stream) {
  if (sections.size() != blocks_ || group >= basis_.groups().size()) {
    return absl::InvalidArgumentError(absl::StrCat(sections.size(), " sections for ", blocks_, " blocks"));
  }
  const uint64_t first = payload_used_, room = payload_.size() - first;
  if (bytes > room) return absl::ResourceExhaustedError("a batch's sections do not fit the device memory set apart");
  SectionSource* sources = sources_.host.data() + size_t{group} * blocks_;
  std::fill_n(sources, blocks_, SectionSource());
  for (uint32_t b = 0; b < blocks_; ++b) {
    const GroupSection& section = sections[b];
    if (section.bytes == 0) continue;
    if (section.offset % kSectionAlignment != 0 || section.offset > bytes || section.bytes > bytes - section.offset) {
      return absl::InvalidArgumentError("a section outside its group's bytes");
    }
    absl::StatusOr<StepModel> model = basis_.Model(group, section.step);
    if (!model.ok()) continue;  // Missing, for this batch.
    sources[b] = {payload_.data() + first + section.offset, section.bytes, section.crc32c, section.step,
                        known_sinks_[b] < 0 ? 0 : basis_.SinkOffset(known_sinks_[b], group) + 1, *model};
  }
  payload_used_ += (bytes + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
  absl::Status status = CudaStatus(
      cudaMemcpyAsync(payload_.data() + first, payload, bytes, cudaMemcpyHostToDevice, stream), "copying sections");
  status.Update(sources_.Upload(size_t{group} * blocks_, blocks_, stream));
  return status;
}

absl::Status GroupRestorer::Decode(uint32_t first, uint32_t last, cudaStream_t stream) {
  DecodeParams params = {};
  params.tables = basis_.tables();
  params.groups = basis_.decode_groups();
  params.sources = sources_.data();
  params.first_tokens = first_tokens_.data();
  params.states = states_.data();
  params.latents = latents_.data();
  params.latent_stride = basis_.latent_stride();
  params.own_sums = own_sums_.data();
  params.inherited_sums = inherited_sums_.data();
  params.rest_tiles = rest_tiles_.data();
  params.rests = rests_.data();
  params.rest_count = rest_count_.data();
  params.rests_max = limits_.rests_max;
  params.blocks = blocks_;
  params.first_group = first;
  params.last_group = last;
  params.inherited_rank = basis_.inherited_rank();
  return DecodeSections(params, multiprocessors_, stream);
}

absl::Status GroupRestorer::Restore(uint32_t group, cudaStream_t stream) {
  const DeviceGroup& from = basis_.groups()[group];
  absl::Status status =
      VerifySections({group, blocks_, sources_.data(), states_.data(), first_tokens_.data(), own_sums_.data(),
                      inherited_sums_.data(), inherited_totals_.data(), first_faults_.data(), plans_.data()},
                     stream);
  if (!status.ok()) return status;
  const ProductMaps maps = {feature_map_, latent_map_, rest_map_, from.map};
  ProductParams params = {};
  params.tiles = from.tiles.data();
  params.mean = from.mean.data();
  params.feature_scale = from.feature_scale.data();
  params.row_scale = from.row_scale.data();
  params.tile_count = from.tile_count;
  params.feature_tiles = basis_.feature_tiles();
  params.own_tiles = from.own_tiles;
  params.inherited_tiles = basis_.inherited_tiles();
  params.columns = basis_.columns();
  params.group = group;
  params.blocks = blocks_;
  params.plans = plans_.data();
  params.rest_tiles = rest_tiles_.data();
  params.slots = slots_.data();
  params.parts = parts_.data();
  params.first_part = 2 * from.first_layer;
  params.part_count = 2 * (from.last_layer - from.first_layer);
  params.rotaries = rotaries_.data();
  status = RestoreProduct(maps, params, basis_.dtype(), multiprocessors_, stream);
  if (!status.ok()) return status;
  return WriteStored({group, blocks_, from.first_layer, from.last_layer, basis_.layers(), sources_.data(),
                      states_.data(), first_faults_.data(), slots_.data(), parts_.data(), basis_.known_sinks()},
                     basis_.dtype(), stream);
}

absl::Status GroupRestorer::Report(Outcome* pinned, cudaStream_t stream) {
  if (blocks_ == 0) return absl::OkStatus();
  constexpr uint32_t kThreads = 128;
  ReportKernel<<<(blocks_ + kThreads - 1) / kThreads, kThreads, 0, stream>>>(states_.data(), first_faults_.data(),
                                                                            blocks_, outcomes_.data());
  absl::Status status = LaunchStatus("reporting");
  status.Update(CudaStatus(cudaMemcpyAsync(pinned, outcomes_.data(), blocks_ * sizeof(Outcome), cudaMemcpyDeviceToHost,
                                           stream),
                           "copying a report"));
  return status;
}

}  // namespace latentkv::cuda
