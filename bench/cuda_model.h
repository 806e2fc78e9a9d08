// The model that the benches of a GPU measure: Llama-3.1-8B's geometry. Its
// basis and latents are synthetic: the spectrum is that of a real basis at a
// profile, stretched over the channels; matrices are random, latents Laplace
// with tokens of different activity.
#ifndef LATENTKV_BENCH_CUDA_MODEL_H_
#define LATENTKV_BENCH_CUDA_MODEL_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "codec/basis.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "core/checksum.h"
#include "core/geometry.h"
#include "kernels/cuda/device_array.h"
#include "kernels/cuda/group_restorer.h"

namespace latentkv::cuda {

inline constexpr uint32_t kLayers = 32, kHeads = 8, kDims = 128,
                          kLayersPerGroup = 4,
                          kGroups = kLayers / kLayersPerGroup;
inline constexpr uint32_t kGroupChannels = kLayersPerGroup * 2 * kHeads * kDims,
                          kPageTokens = 16;
// Different ones; the others repeat their latents.
inline constexpr uint32_t kDrawnBlocks = 16;
inline constexpr int kRuns = 15;

inline void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
inline void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Value(absl::StatusOr<T> made) {
  Check(made.status());
  return *std::move(made);
}

inline Geometry Llama() {
  LayerGeometry layer;
  layer.kv_heads = kHeads;
  layer.head_dim = layer.rotary_dim = kDims;
  layer.pairing = RotaryPairing::kHalves;
  for (uint32_t i = 0; i < kDims / 2; ++i)
    layer.inverse_frequencies.push_back(std::pow(5e5, -2.0 * i / kDims));
  Geometry geometry;
  geometry.layers.assign(kLayers, layer);
  return geometry;
}

template <typename Fill>
void OnAllCores(uint32_t count, Fill fill) {
  std::vector<std::thread> threads;
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  for (uint32_t c = 0; c < cores; ++c) {
    threads.emplace_back([=] {
      for (uint32_t i = c; i < count; i += cores) fill(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Latent r of R has the scale of latent r * C / C' of the real basis, whose
// groups are taken in turn over the depth.
inline std::shared_ptr<const Basis> Stretched(const Basis& real, float step) {
  BasisParts parts;
  parts.geometry = Llama();
  parts.description = "synthetic";
  parts.profiles = {{"stretched", step, 1.0f}};
  parts.embedding = {
      32000, real.embedding().dims, real.embedding().history, {}};
  parts.embedding.rows.resize(size_t{parts.embedding.vocabulary} *
                              parts.embedding.dims);
  std::mt19937 random(1);
  for (int8_t& value : parts.embedding.rows)
    value = static_cast<int>(random() % 81) - 40;
  parts.inherited_rank = real.inherited_rank();
  parts.groups.resize(kGroups);
  OnAllCores(kGroups, [&](uint32_t g) {
    const BasisGroup& from = real.groups()[g * real.groups().size() / kGroups];
    BasisGroup& group = parts.groups[g];
    std::mt19937 draw(g);
    group.first_layer = g * kLayersPerGroup;
    group.last_layer = group.first_layer + kLayersPerGroup;
    group.channels = kGroupChannels;
    const double stretch = static_cast<double>(kGroupChannels) / from.channels;
    // What a profile never codes costs nothing but memory: left out, as a basis
    // for this step would.
    group.rank =
        static_cast<uint32_t>(LiveRank(from.latent_scale, step) * stretch);
    for (uint32_t r = 0; r < group.rank; ++r) {
      group.latent_scale.push_back(
          from.latent_scale[static_cast<size_t>(r / stretch)]);
    }
    const uint32_t features = parts.embedding.Features();
    group.mean.assign(kGroupChannels, 0.1f);
    group.feature_scale.assign(features > 0 ? kGroupChannels : 0, 0x1p-14f);
    group.row_scale.assign(kGroupChannels, 0x1p-10f);
    group.weight.assign(kGroupChannels, 1);
    group.sensitivity.assign(kGroupChannels, 1);
    group.decoder.resize(size_t{group.rank + g * parts.inherited_rank} *
                         kGroupChannels);
    group.feature_rows.resize(size_t{features} * kGroupChannels);
    for (auto* matrix : {&group.decoder, &group.feature_rows}) {
      for (int8_t& value : *matrix)
        value = static_cast<int>(draw() % 255) - 127;
    }
  });
  return Value(Basis::Create(std::move(parts)));
}

// Sections [blocks][groups] of a chain's later blocks: no sinks.
inline std::vector<std::vector<Bytes>> DrawSections(const Basis& basis,
                                                    const LatentTables& tables,
                                                    float step) {
  std::vector<std::vector<Bytes>> sections(kDrawnBlocks,
                                           std::vector<Bytes>(kGroups));
  OnAllCores(kDrawnBlocks * kGroups, [&](uint32_t i) {
    const uint32_t b = i / kGroups, g = i % kGroups;
    const BasisGroup& group = basis.groups()[g];
    std::mt19937 random(i);
    std::exponential_distribution<float> magnitude;
    std::normal_distribution<float> activity(0, 0.5f);
    LatentSection section;
    section.predicted = true;
    section.latents.resize(size_t{kBlockTokens} * group.rank);
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const float active = std::exp(activity(random) - 0.125f);
      for (uint32_t r = 0; r < group.rank; ++r) {
        const float q =
            magnitude(random) * active * group.latent_scale[r] / step;
        const int rounded = static_cast<int>(std::lrint(std::min(q, 256.0f)));
        section.latents[size_t{t} * group.rank + r] =
            random() % 2 == 0 ? rounded : -rounded;
      }
    }
    sections[b][g] = Value(WriteLatentSection(group, tables, step, section));
  });
  return sections;
}

// An engine's memory with a chain in pages in no order, but for its first
// block, which is not there.
struct Engine {
  DeviceArray<uint8_t> memory;
  std::vector<uint32_t> chain;
  std::vector<DevicePart> parts;
  std::vector<std::vector<TokenSlot>> slots;
  std::vector<RestoreBlock> blocks;
};

inline Engine MakeEngine(const Basis& basis, uint32_t tokens) {
  Engine engine;
  const uint64_t raw_bytes = tokens * basis.geometry().BytesPerToken();
  engine.memory = Value(DeviceArray<uint8_t>::Make(raw_bytes));
  std::mt19937 random(5);
  engine.chain.resize(tokens + kBlockTokens);
  for (uint32_t& token : engine.chain) token = random() % 32000;
  std::vector<uint64_t> page_ids(engine.chain.size() / kPageTokens);
  for (size_t i = 0; i < page_ids.size(); ++i) page_ids[i] = i;
  std::shuffle(page_ids.begin() + kBlockTokens / kPageTokens, page_ids.end(),
               random);
  const int64_t row = kHeads * kDims * 2, page_bytes = row * kPageTokens;
  for (uint32_t p = 0; p < 2 * kLayers; ++p) {
    engine.parts.push_back({engine.memory.data() +
                                p * (raw_bytes / kLayers / 2) -
                                kBlockTokens / kPageTokens * page_bytes,
                            page_bytes, row, kDims * 2, 2});
  }
  engine.slots.resize(tokens / kBlockTokens);
  for (uint32_t b = 0; b < engine.slots.size(); ++b) {
    const uint32_t first = (b + 1) * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      engine.slots[b].push_back(
          {static_cast<uint32_t>(page_ids[(first + t) / kPageTokens]),
           (first + t) % kPageTokens});
    }
    engine.blocks.push_back(
        {first, absl::MakeConstSpan(engine.chain).first(first + kBlockTokens),
         -1, engine.slots[b]});
  }
  return engine;
}

// Sections of one group of all blocks, as they arrive.
struct Payload {
  PinnedArray<uint8_t> bytes;
  std::vector<GroupSection> places;  // [blocks]
};

// [groups], of blocks that repeat those that were drawn.
inline std::vector<Payload> MakePayloads(
    const std::vector<std::vector<Bytes>>& drawn, float step, uint32_t blocks) {
  std::vector<Payload> payloads(kGroups);
  for (uint32_t g = 0; g < kGroups; ++g) {
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < blocks; ++b) {
      const Bytes& section = drawn[b % kDrawnBlocks][g];
      payloads[g].places.push_back({bytes,
                                    static_cast<uint32_t>(section.size()),
                                    Crc32c(section), step});
      bytes += (section.size() + kSectionAlignment - 1) / kSectionAlignment *
               kSectionAlignment;
    }
    payloads[g].bytes = Value(PinnedArray<uint8_t>::Make(bytes));
    for (uint32_t b = 0; b < blocks; ++b) {
      const Bytes& section = drawn[b % kDrawnBlocks][g];
      std::copy(section.begin(), section.end(),
                payloads[g].bytes.data() + payloads[g].places[b].offset);
    }
  }
  return payloads;
}

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    for (cudaEvent_t* event : {&first_, &second_})
      Check(cudaEventCreate(event), "an event");
  }
  // Median milliseconds of kRuns.
  template <typename Work>
  double Median(Work work) {
    std::vector<float> times;
    for (int run = 0; run < kRuns + 2; ++run) {
      Check(cudaEventRecord(first_, stream_), "timing");
      work();
      Check(cudaEventRecord(second_, stream_), "timing");
      Check(cudaStreamSynchronize(stream_), "waiting");
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, first_, second_), "timing");
      if (run >= 2) times.push_back(ms);
    }
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2];
  }

 private:
  const cudaStream_t stream_;
  cudaEvent_t first_, second_;
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_BENCH_CUDA_MODEL_H_
