#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/cuda/hopper_device.h"
#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/restore_steps.h"

namespace latentkv::cuda {
namespace {

uint64_t Aligned(uint64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment *
         kSectionAlignment;
}

__global__ void ReportKernel(const SectionState* states,
                             const uint32_t* first_faults, uint32_t blocks,
                             GroupRestorer::Outcome* outcomes) {
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
  if (block >= blocks) return;
  const uint32_t group = first_faults[block];
  outcomes[block] = {group, group == ~0u
                                ? kFaultNone
                                : states[size_t{group} * blocks + block].fault};
}

}  // namespace

absl::StatusOr<std::unique_ptr<GroupRestorer>> GroupRestorer::Create(
    DeviceBasis* basis, const RotaryCache* rotary,
    const RestoreLimits& limits) {
  const absl::StatusOr<uint32_t> multiprocessors =
      HopperMultiprocessors("restoring");
  if (!multiprocessors.ok()) return multiprocessors.status();
  if (limits.blocks_max == 0 || limits.rests_max == 0 ||
      limits.rests_max >= kNoRest) {
    return absl::InvalidArgumentError("limits of a restore");
  }
  std::unique_ptr<GroupRestorer> restorer(
      new GroupRestorer(basis, rotary, limits));
  absl::Status status = restorer->Allocate(*multiprocessors);
  if (!status.ok()) return status;
  return restorer;
}

absl::Status GroupRestorer::Allocate(uint32_t multiprocessors) {
  multiprocessors_ = multiprocessors;
  const size_t blocks = limits_.blocks_max, tokens = blocks * kBlockTokens,
               groups = basis_.groups().size();
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
  make(&plans_, blocks);
  make(&rest_tiles_, groups * blocks * kRankTilesMax);
  mirror(&sources_, groups * blocks);
  make(&states_, groups * blocks);
  MirroredArray<uint8_t> arena;
  mirror(&arena,
         MirroredArena::Bytes<uint32_t>(blocks *
                                        (kBlockTokens + basis_.history())) +
             2 * MirroredArena::Bytes<uint32_t>(blocks) +
             MirroredArena::Bytes<uint32_t>(1) +
             MirroredArena::Bytes<TokenSlot>(tokens) +
             MirroredArena::Bytes<DevicePart>(2 *
                                              basis_.geometry().layers.size()) +
             MirroredArena::Bytes<DeviceRotary>(basis_.rotary_layers().size()));
  arena_ = MirroredArena(std::move(arena));
  make(&payload_, Aligned(limits_.payload_bytes_max));
  make(&outcomes_, blocks);
  if (!status.ok()) return status;
  status = OnOwnStream([&](cudaStream_t stream) {
    return cudaMemsetAsync(rests_.data(), 0, kBlockTokens * kRankTile, stream);
  });
  const auto map = [&](const DeviceArray<int8_t>& matrix, uint64_t rows,
                       uint64_t columns, uint32_t box_rows,
                       CUtensorMap* result) {
    absl::StatusOr<CUtensorMap> made =
        MakeProductMap(matrix.data(), rows, columns, box_rows);
    if (made.ok()) *result = *made;
    status.Update(made.status());
  };
  map(latents_, tokens, basis_.latent_stride(), kTokenRows, &latent_map_);
  map(rests_, uint64_t{limits_.rests_max} * kBlockTokens, kRankTile, kRestRows,
      &rest_map_);
  if (feature_columns > 0)
    map(features_, tokens, feature_columns, kTokenRows, &feature_map_);
  return status;
}

absl::Status GroupRestorer::Begin(absl::Span<const RestoreBlock> blocks,
                                  absl::Span<const DevicePart> parts,
                                  cudaStream_t stream) {
  if (blocks.size() > limits_.blocks_max ||
      parts.size() != 2 * basis_.geometry().layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        blocks.size(), " blocks and ", parts.size(), " parts of pages"));
  }
  for (const RestoreBlock& block : blocks) {
    const uint64_t end = uint64_t{block.first_token} + kBlockTokens;
    if (end <= rotary_.positions() && block.tokens.size() == end &&
        block.slots.size() == kBlockTokens)
      continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a block from token ", block.first_token, " on with ",
                     block.tokens.size(), " tokens of its chain and ",
                     block.slots.size(), " slots"));
  }
  basis_.MakeRoomForModels();
  blocks_ = blocks.size();
  payload_used_ = 0;
  arena_.Clear();
  // Features first: the device makes them while the host writes the rest.
  const uint32_t history = std::max(1u, basis_.history());
  tokens_ =
      arena_.Take<uint32_t>(size_t{blocks_} * (history - 1 + kBlockTokens));
  uint32_t* token = tokens_.host;
  for (const RestoreBlock& block : blocks) {
    for (uint32_t back = history - 1; back > 0; --back) {
      *token++ = back <= block.first_token
                     ? block.tokens[block.first_token - back]
                     : kNoToken;
    }
    token = std::copy_n(block.tokens.end() - kBlockTokens, kBlockTokens, token);
  }
  absl::Status status;
  if (basis_.feature_tiles() > 0) {
    status = arena_.Upload(stream);
    status.Update(
        MakeFeatures({basis_.embedding(), basis_.vocabulary(), basis_.dims(),
                      basis_.history(), tokens_.data(), blocks_,
                      features_.data(), basis_.feature_tiles() * kRankTile},
                     stream));
  }
  first_tokens_ = arena_.Take<uint32_t>(blocks_);
  slots_ = arena_.Take<TokenSlot>(size_t{blocks_} * kBlockTokens);
  known_sinks_.clear();
  for (uint32_t b = 0; b < blocks_; ++b) {
    first_tokens_.host[b] = blocks[b].first_token;
    known_sinks_.push_back(blocks[b].first_token == 0 ? blocks[b].known_sinks
                                                      : -1);
    std::copy_n(blocks[b].slots.begin(), kBlockTokens,
                slots_.host + size_t{b} * kBlockTokens);
  }
  parts_ = arena_.Take<DevicePart>(parts.size());
  std::copy(parts.begin(), parts.end(), parts_.host);
  const std::vector<DeviceRotary> rotaries = rotary_.tables();
  rotaries_ = arena_.Take<DeviceRotary>(rotaries.size());
  std::copy(rotaries.begin(), rotaries.end(), rotaries_.host);
  first_faults_ = arena_.Take<uint32_t>(blocks_);
  std::fill_n(first_faults_.host, blocks_, ~0u);
  rest_count_ = arena_.Take<uint32_t>(1);
  static_assert(kZeroRest == 0);
  *rest_count_.host = 1;
  status.Update(arena_.Upload(stream));
  return status;
}

absl::StatusOr<uint8_t*> GroupRestorer::Place(
    uint32_t group, uint64_t bytes, absl::Span<const GroupSection> sections) {
  if (sections.size() != blocks_ || group >= basis_.groups().size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(sections.size(), " sections for ", blocks_, " blocks"));
  }
  if (bytes > payload_.size() - payload_used_) {
    return absl::ResourceExhaustedError(
        "a batch's sections do not fit the device memory set apart");
  }
  uint8_t* const payload = payload_.data() + payload_used_;
  SectionSource* sources = sources_.host.data() + size_t{group} * blocks_;
  std::fill_n(sources, blocks_, SectionSource());
  for (uint32_t b = 0; b < blocks_; ++b) {
    const GroupSection& section = sections[b];
    if (section.bytes == 0) continue;
    if (section.offset % kSectionAlignment != 0 || section.offset > bytes ||
        section.bytes > bytes - section.offset) {
      return absl::InvalidArgumentError("a section outside its group's bytes");
    }
    absl::StatusOr<StepModel> model = basis_.Model(group, section.step);
    if (!model.ok()) continue;  // Missing, for this batch.
    sources[b] = {
        payload + section.offset,
        section.bytes,
        section.crc32c,
        section.step,
        known_sinks_[b] < 0 ? 0 : basis_.SinkOffset(known_sinks_[b], group) + 1,
        *model};
  }
  payload_used_ += Aligned(bytes);
  return payload;
}

absl::Status GroupRestorer::Add(uint32_t group, const uint8_t* payload,
                                uint64_t bytes,
                                absl::Span<const GroupSection> sections,
                                cudaStream_t stream) {
  const absl::StatusOr<uint8_t*> to = Place(group, bytes, sections);
  if (!to.ok()) return to.status();
  absl::Status status = CudaStatus(
      cudaMemcpyAsync(*to, payload, bytes, cudaMemcpyHostToDevice, stream),
      "copying sections");
  status.Update(sources_.Upload(size_t{group} * blocks_, blocks_, stream));
  return status;
}

absl::Status GroupRestorer::AddAndDecode(
    uint32_t group, const uint8_t* payload, uint64_t bytes,
    absl::Span<const GroupSection> sections, cudaStream_t stream) {
  cudaPointerAttributes memory = {};
  absl::Status status = CudaStatus(cudaPointerGetAttributes(&memory, payload),
                                   "asking for pinned memory");
  if (!status.ok()) return status;
  const uint8_t* pinned = static_cast<const uint8_t*>(memory.devicePointer);
  if (memory.type != cudaMemoryTypeHost ||
      reinterpret_cast<uintptr_t>(pinned) % kSectionAlignment != 0) {
    return absl::InvalidArgumentError(
        "sections that are not in pinned memory, or not aligned there");
  }
  const absl::StatusOr<uint8_t*> to = Place(group, bytes, sections);
  if (!to.ok()) return to.status();
  status = sources_.Upload(size_t{group} * blocks_, blocks_, stream);
  return status.ok() ? DecodeFrom(pinned, *to, group, group + 1, stream)
                     : status;
}

absl::Status GroupRestorer::Decode(uint32_t first, uint32_t last,
                                   cudaStream_t stream) {
  return DecodeFrom(nullptr, nullptr, first, last, stream);
}

absl::Status GroupRestorer::DecodeFrom(const uint8_t* pinned, uint8_t* payload,
                                       uint32_t first, uint32_t last,
                                       cudaStream_t stream) {
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
  params.pinned = pinned;
  params.payload = payload;
  return DecodeSections(params, multiprocessors_, stream);
}

absl::Status GroupRestorer::Restore(uint32_t group, cudaStream_t stream) {
  const DeviceGroup& from = basis_.groups()[group];
  absl::Status status = VerifySections(
      {group, blocks_, sources_.data(), states_.data(), first_tokens_.data(),
       own_sums_.data(), inherited_sums_.data(), inherited_totals_.data(),
       first_faults_.data(), plans_.data()},
      stream);
  if (!status.ok()) return status;
  const ProductMaps maps = {feature_map_, latent_map_, rest_map_, from.map};
  ProductParams params = basis_.Product(group);
  params.blocks = blocks_;
  params.plans = plans_.data();
  params.rest_tiles = rest_tiles_.data();
  params.slots = slots_.data();
  params.parts = parts_.data();
  params.rotaries = rotaries_.data();
  status =
      RestoreProduct(maps, params, basis_.dtype(), multiprocessors_, stream);
  if (!status.ok()) return status;
  return WriteStored(
      {group, blocks_, from.first_layer, from.last_layer, basis_.layers(),
       sources_.data(), states_.data(), first_faults_.data(), slots_.data(),
       parts_.data(), basis_.known_sinks()},
      basis_.dtype(), stream);
}

absl::Status GroupRestorer::Report(Outcome* pinned, cudaStream_t stream) {
  if (blocks_ == 0) return absl::OkStatus();
  constexpr uint32_t kThreads = 128;
  ReportKernel<<<(blocks_ + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      states_.data(), first_faults_.data(), blocks_, outcomes_.data());
  absl::Status status = LaunchStatus("reporting");
  status.Update(CudaStatus(
      cudaMemcpyAsync(pinned, outcomes_.data(), blocks_ * sizeof(Outcome),
                      cudaMemcpyDeviceToHost, stream),
      "copying a report"));
  return status;
}

}  // namespace latentkv::cuda
