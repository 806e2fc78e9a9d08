// Restores on a GPU in fractions of the machine: frames' sections in pinned memory to rotated keys and values in pages,
// beside the copy of the raw cache from pinned memory and cuBLAS's bare product of the same shapes, in one run.
// The geometry is Llama-3.1-8B's. Its basis and latents are synthetic: the spectrum is that of a real basis at a
// profile, stretched over the channels; matrices are random, latents Laplace with tokens of different activity.
//
//     latentkv_cuda_restore_bench BASIS [PROFILE [TOKENS]]
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "codec/basis.h"
#include "codec/basis_view.h"
#include "codec/codec.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/pages.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kLayers = 32, kHeads = 8, kDims = 128, kLayersPerGroup = 4, kGroups = kLayers / kLayersPerGroup;
constexpr uint32_t kGroupChannels = kLayersPerGroup * 2 * kHeads * kDims, kPageTokens = 16;
constexpr uint32_t kDrawnBlocks = 16;  // Different ones; the others repeat their latents.
constexpr int kRuns = 15;

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Value(absl::StatusOr<T> made) {
  Check(made.status());
  return *std::move(made);
}

Geometry Llama() {
  LayerGeometry layer;
  layer.kv_heads = kHeads;
  layer.head_dim = layer.rotary_dim = kDims;
  layer.pairing = RotaryPairing::kHalves;
  for (uint32_t i = 0; i < kDims / 2; ++i) layer.inverse_frequencies.push_back(std::pow(5e5, -2.0 * i / kDims));
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

// Latent r of R has the scale of latent r * C / C' of the real basis, whose groups are taken in turn over the depth.
std::shared_ptr<const Basis> Stretched(const Basis& real, float step) {
  BasisParts parts;
  parts.geometry = Llama();
  parts.description = "synthetic";
  parts.profiles = {{"stretched", step, 1.0f}};
  parts.embedding = {32000, real.embedding().dims, real.embedding().history, {}};
  parts.embedding.rows.resize(size_t{parts.embedding.vocabulary} * parts.embedding.dims);
  std::mt19937 random(1);
  for (int8_t& value : parts.embedding.rows) value = static_cast<int>(random() % 81) - 40;
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
    // What a profile never codes costs nothing but memory: left out, as a basis for this step would.
    group.rank = static_cast<uint32_t>(LiveRank(from.latent_scale, step) * stretch);
    for (uint32_t r = 0; r < group.rank; ++r) {
      group.latent_scale.push_back(from.latent_scale[static_cast<size_t>(r / stretch)]);
    }
    const uint32_t features = parts.embedding.Features();
    group.mean.assign(kGroupChannels, 0.1f);
    group.feature_scale.assign(features > 0 ? kGroupChannels : 0, 0x1p-14f);
    group.row_scale.assign(kGroupChannels, 0x1p-10f);
    group.weight.assign(kGroupChannels, 1);
    group.sensitivity.assign(kGroupChannels, 1);
    group.decoder.resize(size_t{group.rank + g * parts.inherited_rank} * kGroupChannels);
    group.feature_rows.resize(size_t{features} * kGroupChannels);
    for (auto* matrix : {&group.decoder, &group.feature_rows}) {
      for (int8_t& value : *matrix) value = static_cast<int>(draw() % 255) - 127;
    }
  });
  return Value(Basis::Create(std::move(parts)));
}

// Sections [blocks][groups] of a chain's later blocks: no sinks.
std::vector<std::vector<Bytes>> DrawSections(const Basis& basis, const LatentTables& tables, float step) {
  std::vector<std::vector<Bytes>> sections(kDrawnBlocks, std::vector<Bytes>(kGroups));
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
        const float q = magnitude(random) * active * group.latent_scale[r] / step;
        const int rounded = static_cast<int>(std::lrint(std::min(q, 256.0f)));
        section.latents[size_t{t} * group.rank + r] = random() % 2 == 0 ? rounded : -rounded;
      }
    }
    sections[b][g] = Value(WriteLatentSection(group, tables, step, section));
  });
  return sections;
}

class Timer {
 public:
  explicit Timer(cudaStream_t stream) : stream_(stream) {
    for (cudaEvent_t* event : {&first_, &second_}) Check(cudaEventCreate(event), "an event");
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

// bf16 in and out, sums in fp32.
double BareProduct(const std::vector<uint32_t>& ranks, uint32_t tokens, cudaStream_t stream, double* flops) {
  const uint32_t rank_max = *std::max_element(ranks.begin(), ranks.end());
  auto a = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * rank_max));
  auto b = Value(DeviceArray<uint16_t>::Make(size_t{kGroupChannels} * rank_max));
  auto c = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * kGroupChannels));
  std::vector<uint16_t> values(std::max(a.size(), b.size()));
  std::mt19937 random(3);
  for (auto* matrix : {&a, &b}) {
    // Small whole numbers, as latents and decoders are: most latents are 0.
    for (uint16_t& value : values) {
      const float drawn = matrix == &a ? (random() % 3 == 0 ? static_cast<int>(random() % 5) - 2 : 0)
                                       : static_cast<int>(random() % 255) - 127;
      uint32_t bits;
      std::memcpy(&bits, &drawn, 4);
      value = bits >> 16;
    }
    Check(cudaMemcpy(matrix->data(), values.data(), matrix->bytes(), cudaMemcpyHostToDevice), "filling");
  }
  cublasHandle_t handle;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) std::exit(1);
  cublasSetStream(handle, stream);
  const float one = 1, zero = 0;
  *flops = 0;
  for (uint32_t rank : ranks) *flops += 2.0 * tokens * kGroupChannels * rank;
  const double ms = Timer(stream).Median([&] {
    for (uint32_t rank : ranks) {
      if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kGroupChannels, tokens, rank, &one, b.data(), CUDA_R_16BF, rank,
                       a.data(), CUDA_R_16BF, rank, &zero, c.data(), CUDA_R_16BF, kGroupChannels, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
        std::exit(1);
      }
    }
  });
  cublasDestroy(handle);
  return ms;
}

void Run(const std::string& basis_path, const std::string& profile, uint32_t tokens) {
  const uint32_t blocks = tokens / kBlockTokens;
  const std::shared_ptr<const Basis> real = Value(Basis::Load(basis_path));
  const float step = Value(real->FindProfile(profile)).step;
  const std::shared_ptr<const Basis> basis = Stretched(*real, step);
  const LatentTables tables = MakeLatentTables();
  const std::vector<std::vector<Bytes>> drawn = DrawSections(*basis, tables, step);
  cudaStream_t copies, work;
  Check(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking), "a stream");
  Check(cudaStreamCreateWithFlags(&work, cudaStreamNonBlocking), "a stream");
  Timer timer(work);

  // Ceilings.
  const uint64_t raw_bytes = tokens * basis->geometry().BytesPerToken();
  auto memory = Value(DeviceArray<uint8_t>::Make(raw_bytes));
  double copy_ms = 0, device_ms = 0;
  {
    const uint64_t piece = std::min<uint64_t>(raw_bytes, uint64_t{512} << 20);
    const auto host = Value(PinnedArray<uint8_t>::Make(piece));
    std::memset(host.data(), 1, piece);
    copy_ms = timer.Median([&] {
      for (uint64_t at = 0; at < raw_bytes; at += piece) {
        Check(cudaMemcpyAsync(memory.data() + at, host.data(), std::min(piece, raw_bytes - at), cudaMemcpyHostToDevice, work),
              "copying");
      }
    });
    device_ms = timer.Median([&] {
      Check(cudaMemcpyAsync(memory.data(), memory.data() + raw_bytes / 2, raw_bytes / 2, cudaMemcpyDeviceToDevice, work),
            "copying");
    });
  }

  const auto device_basis = Value(DeviceBasis::Create(ViewOf(*basis, tables)));
  RotaryCache rotary(&basis->geometry(), device_basis->rotary_layers());
  Check(rotary.Reach(tokens + kBlockTokens));
  RestoreLimits limits;
  limits.blocks_max = blocks;
  limits.rests_max = 1024;
  const auto restorer = Value(GroupRestorer::Create(device_basis.get(), &rotary, limits));

  // A chain without its first block, in pages that lie in no order.
  std::mt19937 random(5);
  std::vector<uint32_t> chain(tokens + kBlockTokens);
  for (uint32_t& token : chain) token = random() % 32000;
  std::vector<uint64_t> page_ids(chain.size() / kPageTokens);
  for (size_t i = 0; i < page_ids.size(); ++i) page_ids[i] = i;
  std::shuffle(page_ids.begin() + kBlockTokens / kPageTokens, page_ids.end(), random);
  const uint64_t page_bytes = uint64_t{kPageTokens} * kHeads * kDims * 2, part_bytes = raw_bytes / kLayers / 2;
  std::vector<DevicePart> parts;
  const int64_t row = kHeads * kDims * 2;
  // Page 0 to 3 are those of the first block, which is not there.
  for (uint32_t p = 0; p < 2 * kLayers; ++p) {
    parts.push_back({memory.data() + p * part_bytes - kBlockTokens / kPageTokens * page_bytes,
                     static_cast<int64_t>(page_bytes), row, kDims * 2, 2});
  }
  std::vector<std::vector<TokenSlot>> slots(blocks);
  std::vector<RestoreBlock> restored;
  for (uint32_t b = 0; b < blocks; ++b) {
    const uint32_t first = (b + 1) * kBlockTokens;
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      slots[b].push_back({static_cast<uint32_t>(page_ids[(first + t) / kPageTokens]), (first + t) % kPageTokens});
    }
    restored.push_back({first, absl::MakeConstSpan(chain).first(first + kBlockTokens), -1, slots[b]});
  }
  uint64_t payload_bytes = 0;
  std::vector<PinnedArray<uint8_t>> payloads;
  std::vector<std::vector<GroupSection>> places(kGroups);
  for (uint32_t g = 0; g < kGroups; ++g) {
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < blocks; ++b) {
      const Bytes& section = drawn[b % kDrawnBlocks][g];
      places[g].push_back({bytes, static_cast<uint32_t>(section.size()), Crc32c(section), step});
      bytes += (section.size() + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
      payload_bytes += section.size();
    }
    payloads.push_back(Value(PinnedArray<uint8_t>::Make(bytes)));
    for (uint32_t b = 0; b < blocks; ++b) {
      const Bytes& section = drawn[b % kDrawnBlocks][g];
      std::copy(section.begin(), section.end(), payloads[g].data() + places[g][b].offset);
    }
  }

  // What the stream does, one interval after the other.
  enum Stage { kBegin, kFirstDecode, kFirstProduct, kOtherPayloads, kOtherDecodes, kOtherProducts, kStages };
  cudaEvent_t start, marks[kStages], copied[kGroups];
  Check(cudaEventCreate(&start), "an event");
  for (cudaEvent_t& event : marks) Check(cudaEventCreate(&event), "an event");
  for (cudaEvent_t& event : copied) Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
  const auto restore = [&] {
    const auto mark = [&](Stage stage) { Check(cudaEventRecord(marks[stage], work), "timing"); };
    Check(cudaEventRecord(start, work), "timing");
    Check(cudaStreamWaitEvent(copies, start), "waiting");
    Check(restorer->Begin(restored, parts, work));
    mark(kBegin);
    Check(restorer->AddAndDecode(0, payloads[0].data(), payloads[0].size(), places[0], work));
    mark(kFirstDecode);
    for (uint32_t g = 1; g < kGroups; ++g) {
      Check(restorer->Add(g, payloads[g].data(), payloads[g].size(), places[g], copies));
      Check(cudaEventRecord(copied[g], copies), "an event");
    }
    Check(restorer->Restore(0, work));
    mark(kFirstProduct);
    Check(cudaStreamWaitEvent(work, copied[kGroups - 1]), "waiting");
    mark(kOtherPayloads);
    Check(restorer->Decode(1, kGroups, work));
    mark(kOtherDecodes);
    for (uint32_t g = 1; g < kGroups; ++g) Check(restorer->Restore(g, work));
    mark(kOtherProducts);
    Check(cudaStreamSynchronize(work), "restoring");
  };
  std::vector<float> stages[kStages + 1];  // The last is the whole.
  for (int run = 0; run < kRuns + 2; ++run) {
    restore();
    for (uint32_t stage = 0; stage <= kStages && run >= 2; ++stage) {
      const bool all = stage == kStages;
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, all || stage == 0 ? start : marks[stage - 1], marks[all ? kStages - 1 : stage]),
            "timing");
      stages[stage].push_back(ms);
    }
  }
  double ms[kStages + 1];
  for (uint32_t stage = 0; stage <= kStages; ++stage) {
    std::nth_element(stages[stage].begin(), stages[stage].begin() + kRuns / 2, stages[stage].end());
    ms[stage] = stages[stage][kRuns / 2];
  }
  const double restore_ms = ms[kStages], product_ms = ms[kFirstProduct] + ms[kOtherProducts];
  const double first_ms = ms[kBegin] + ms[kFirstDecode] + ms[kFirstProduct];
  const double decode_ms = ms[kFirstDecode] + ms[kOtherDecodes];
  std::vector<uint32_t> ranks;
  for (uint32_t g = 0; g < kGroups; ++g) {
    // In whole tiles, as cuBLAS is fast with.
    const auto tiles = [](uint32_t rank) { return (rank + kRankTile - 1) / kRankTile * kRankTile; };
    ranks.push_back(tiles(basis->groups()[g].rank) + g * tiles(basis->inherited_rank()) +
                    tiles(basis->embedding().Features()));
  }

  // As the client does it: each group by itself, as soon as its bytes are there, the next queued behind it; and what
  // there is beyond that when the host waits for each before it queues the next.
  const auto outcomes = Value(PinnedArray<GroupRestorer::Outcome>::Make(blocks));
  Check(cudaMemsetAsync(memory.data(), 0, memory.bytes(), work), "clearing pages");
  const auto group_by_group = [&](bool waits) {
    return timer.Median([&] {
      Check(restorer->Begin(restored, parts, work));
      for (uint32_t g = 0; g < kGroups; ++g) {
        Check(restorer->AddAndDecode(g, payloads[g].data(), payloads[g].size(), places[g], work));
        Check(restorer->Restore(g, work));
        Check(restorer->Report(outcomes.data(), work));
        if (waits) Check(cudaStreamSynchronize(work), "waiting");
      }
    });
  };
  const double queued_ms = group_by_group(false), waited_ms = group_by_group(true);

  // The same bits as on the CPU, after all of that.
  Check(cudaStreamSynchronize(work), "waiting");
  for (uint32_t b = 0; b < blocks; ++b) {
    if (outcomes[b].first_fault == ~0u) continue;
    std::fprintf(stderr, "block %u: fault %u in group %u\n", b, outcomes[b].fault, outcomes[b].first_fault);
    std::exit(1);
  }
  const auto codec = Value(Codec::Create(basis->geometry(), basis));
  uint64_t compared = 0, different = 0;
  for (uint32_t b : {0u, blocks / 2, blocks - 1}) {
    FrameHeader header;
    header.geometry = codec->geometry_digest();
    header.first_token = restored[b].first_token;
    header.token_count = kBlockTokens;
    header.encoding = {basis->digest(), step};
    const Bytes frame = Value(WriteFrame(header, drawn[b % kDrawnBlocks]));
    header = Value(ParseFrameHeader(frame, frame.size()));
    const auto reader = Value(codec->Open(header, {header.key, restored[b].first_token, restored[b].tokens}));
    Bytes host(RawBytes(basis->geometry(), kBlockTokens));
    // The raw form is [layers][K, V][tokens][heads][dims], as the pages are.
    const uint64_t part = uint64_t{kBlockTokens} * row;
    for (uint32_t g = 0; g < kGroups; ++g) {
      const uint64_t group_bytes = host.size() / kGroups;
      Check(reader->ReadSection(g, drawn[b % kDrawnBlocks][g],
                                absl::MakeSpan(host).subspan(g * group_bytes, group_bytes)));
    }
    Bytes device(page_bytes);
    for (uint32_t p = 0; p < 2 * kLayers; ++p) {
      for (uint32_t page = 0; page < kBlockTokens / kPageTokens; ++page) {
        Check(cudaMemcpy(device.data(), parts[p].base + slots[b][page * kPageTokens].page * page_bytes, page_bytes,
                         cudaMemcpyDeviceToHost),
              "reading pages");
        for (uint64_t i = 0; i < page_bytes; ++i) different += device[i] != host[p * part + page * page_bytes + i];
        compared += page_bytes;
      }
    }
  }

  double flops = 0;
  const double bare_ms = BareProduct(ranks, tokens, work, &flops);
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "asking for the device");
  std::printf("%s, %s, %u tokens, %.0f bytes a token of %.0f (%.1f times smaller), ranks", properties.name,
              profile.c_str(), tokens, static_cast<double>(payload_bytes) / tokens,
              static_cast<double>(raw_bytes) / tokens, static_cast<double>(raw_bytes) / payload_bytes);
  for (uint32_t rank : ranks) std::printf(" %u", rank);
  std::printf("\n");
  std::printf("raw copy from pinned memory   %8.3f ms  %6.1f GB/s\n", copy_ms, raw_bytes / copy_ms / 1e6);
  std::printf("device copy                   %8.3f ms  %6.0f GB/s\n", device_ms, raw_bytes / device_ms / 1e6);
  std::printf("cuBLAS bf16 product           %8.3f ms  %6.0f TFLOP/s\n", bare_ms, flops / bare_ms / 1e9);
  std::printf("restore                       %8.3f ms  %.2f times the raw copy's rate, %.3f of the product's time\n",
              restore_ms, copy_ms / restore_ms, restore_ms / bare_ms);
  std::printf("  first group                 %8.3f ms  %.3f of the whole\n", first_ms, first_ms / restore_ms);
  std::printf("  decoding                    %8.3f ms  %.3f of the products; the first group %.3f ms, the others %.3f ms\n",
              decode_ms, decode_ms / product_ms, ms[kFirstDecode], ms[kOtherDecodes]);
  std::printf("  products with epilogue      %8.3f ms  %6.0f TOP/s, %.3f of cuBLAS\n", product_ms,
              flops / product_ms / 1e9, product_ms / bare_ms);
  std::printf("  beginning, waiting for bytes%8.3f ms, %.3f ms\n", ms[kBegin], ms[kOtherPayloads]);
  std::printf("restore, group by group       %8.3f ms queued, %.3f ms with the host waiting for each\n", queued_ms,
              waited_ms);
  std::printf("device memory: basis %.1f MB, rotary tables %.1f MB, scratch %.1f MB (%.0f bytes a token)\n",
              device_basis->bytes() / 1e6, rotary.bytes() / 1e6, restorer->bytes() / 1e6,
              static_cast<double>(restorer->bytes()) / tokens);
  std::printf("equal to the CPU: %llu of %llu bytes differ\n", static_cast<unsigned long long>(different),
              static_cast<unsigned long long>(compared));
  if (different > 0) std::exit(1);
}

}  // namespace
}  // namespace latentkv::cuda

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s BASIS [PROFILE [TOKENS]]\n", argv[0]);
    return 2;
  }
  latentkv::cuda::Run(argv[1], argc > 2 ? argv[2] : "balanced", argc > 3 ? std::atoi(argv[3]) : 16384);
  return 0;
}
