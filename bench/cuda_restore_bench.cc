// Restores on a GPU in fractions of the machine: frames' sections in pinned
// memory to rotated keys and values in pages, beside the copy of the raw cache
// from pinned memory and cuBLAS's bare product of the same shapes, in one run.
// The geometry is Llama-3.1-8B's. Its basis and latents are synthetic: the
// spectrum is that of a real basis at a profile, stretched over the channels;
// matrices are random, latents Laplace with tokens of different activity.
//
//     latentkv_cuda_restore_bench BASIS [PROFILE [TOKENS]]
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/cuda_model.h"
#include "codec/basis_view.h"
#include "codec/codec.h"
#include "core/frame.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/pages.h"

namespace latentkv::cuda {
namespace {

// bf16 in and out, sums in fp32.
double BareProduct(const std::vector<uint32_t>& ranks, uint32_t tokens,
                   cudaStream_t stream, double* flops) {
  const uint32_t rank_max = *std::max_element(ranks.begin(), ranks.end());
  auto a = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * rank_max));
  auto b =
      Value(DeviceArray<uint16_t>::Make(size_t{kGroupChannels} * rank_max));
  auto c = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * kGroupChannels));
  std::vector<uint16_t> values(std::max(a.size(), b.size()));
  std::mt19937 random(3);
  for (auto* matrix : {&a, &b}) {
    // Small whole numbers, as latents and decoders are: most latents are 0.
    for (uint16_t& value : values) {
      const float drawn =
          matrix == &a
              ? (random() % 3 == 0 ? static_cast<int>(random() % 5) - 2 : 0)
              : static_cast<int>(random() % 255) - 127;
      uint32_t bits;
      std::memcpy(&bits, &drawn, 4);
      value = bits >> 16;
    }
    Check(cudaMemcpy(matrix->data(), values.data(), matrix->bytes(),
                     cudaMemcpyHostToDevice),
          "filling");
  }
  cublasHandle_t handle;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) std::exit(1);
  cublasSetStream(handle, stream);
  const float one = 1, zero = 0;
  *flops = 0;
  for (uint32_t rank : ranks) *flops += 2.0 * tokens * kGroupChannels * rank;
  const double ms = Timer(stream).Median([&] {
    for (uint32_t rank : ranks) {
      if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kGroupChannels, tokens,
                       rank, &one, b.data(), CUDA_R_16BF, rank, a.data(),
                       CUDA_R_16BF, rank, &zero, c.data(), CUDA_R_16BF,
                       kGroupChannels, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
        std::exit(1);
      }
    }
  });
  cublasDestroy(handle);
  return ms;
}

// What the machine does at best.
struct Ceilings {
  double copy_ms = 0;    // The raw cache from pinned memory.
  double device_ms = 0;  // Half of it to the other half.
};

Ceilings MeasureCeilings(const DeviceArray<uint8_t>& memory,
                         cudaStream_t stream) {
  Timer timer(stream);
  const uint64_t bytes = memory.bytes(),
                 piece = std::min<uint64_t>(bytes, uint64_t{512} << 20);
  const auto host = Value(PinnedArray<uint8_t>::Make(piece));
  std::memset(host.data(), 1, piece);
  Ceilings ceilings;
  ceilings.copy_ms = timer.Median([&] {
    for (uint64_t at = 0; at < bytes; at += piece) {
      Check(cudaMemcpyAsync(memory.data() + at, host.data(),
                            std::min(piece, bytes - at), cudaMemcpyHostToDevice,
                            stream),
            "copying");
    }
  });
  ceilings.device_ms = timer.Median([&] {
    Check(cudaMemcpyAsync(memory.data(), memory.data() + bytes / 2, bytes / 2,
                          cudaMemcpyDeviceToDevice, stream),
          "copying");
  });
  return ceilings;
}

// What the stream does, one interval after the other.
enum Stage {
  kBegin,
  kFirstDecode,
  kFirstProduct,
  kOtherPayloads,
  kOtherDecodes,
  kOtherProducts,
  kStages
};

// Milliseconds of each stage, and of the whole behind them: medians of kRuns.
std::vector<double> MeasureStages(GroupRestorer* restorer, const Engine& engine,
                                  const std::vector<Payload>& payloads,
                                  cudaStream_t work) {
  cudaStream_t copies;
  Check(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking), "a stream");
  cudaEvent_t start, marks[kStages], copied;
  Check(cudaEventCreate(&start), "an event");
  for (cudaEvent_t& event : marks) Check(cudaEventCreate(&event), "an event");
  Check(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming), "an event");
  const auto mark = [&](Stage stage) {
    Check(cudaEventRecord(marks[stage], work), "timing");
  };
  const auto restore = [&] {
    Check(cudaEventRecord(start, work), "timing");
    Check(cudaStreamWaitEvent(copies, start), "waiting");
    Check(restorer->Begin(engine.blocks, engine.parts, work));
    mark(kBegin);
    Check(restorer->AddAndDecode(0, payloads[0].bytes.data(),
                                 payloads[0].bytes.size(), payloads[0].places,
                                 work));
    mark(kFirstDecode);
    for (uint32_t g = 1; g < kGroups; ++g) {
      Check(restorer->Add(g, payloads[g].bytes.data(), payloads[g].bytes.size(),
                          payloads[g].places, copies));
    }
    Check(cudaEventRecord(copied, copies), "an event");
    Check(restorer->Restore(0, work));
    mark(kFirstProduct);
    Check(cudaStreamWaitEvent(work, copied), "waiting");
    mark(kOtherPayloads);
    Check(restorer->Decode(1, kGroups, work));
    mark(kOtherDecodes);
    for (uint32_t g = 1; g < kGroups; ++g) Check(restorer->Restore(g, work));
    mark(kOtherProducts);
    Check(cudaStreamSynchronize(work), "restoring");
  };
  std::vector<float> stages[kStages + 1];
  for (int run = 0; run < kRuns + 2; ++run) {
    restore();
    for (uint32_t stage = 0; stage <= kStages && run >= 2; ++stage) {
      const bool all = stage == kStages;
      float ms = 0;
      Check(cudaEventElapsedTime(&ms,
                                 all || stage == 0 ? start : marks[stage - 1],
                                 marks[all ? kStages - 1 : stage]),
            "timing");
      stages[stage].push_back(ms);
    }
  }
  std::vector<double> medians;
  for (std::vector<float>& times : stages) {
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    medians.push_back(times[kRuns / 2]);
  }
  return medians;
}

// As the client does it: each group by itself, as soon as its bytes are there,
// the next queued behind it; or, if it `waits`, when the host has waited for
// the one before. Exits where a block was not restored.
double MeasureGroupByGroup(GroupRestorer* restorer, const Engine& engine,
                           const std::vector<Payload>& payloads, bool waits,
                           cudaStream_t stream) {
  const auto outcomes =
      Value(PinnedArray<GroupRestorer::Outcome>::Make(engine.blocks.size()));
  const double ms = Timer(stream).Median([&] {
    Check(restorer->Begin(engine.blocks, engine.parts, stream));
    for (uint32_t g = 0; g < kGroups; ++g) {
      const PinnedArray<uint8_t>& bytes = payloads[g].bytes;
      Check(restorer->AddAndDecode(g, bytes.data(), bytes.size(),
                                   payloads[g].places, stream));
      Check(restorer->Restore(g, stream));
      Check(restorer->Report(outcomes.data(), stream));
      if (waits) Check(cudaStreamSynchronize(stream), "waiting");
    }
  });
  for (uint32_t b = 0; b < engine.blocks.size(); ++b) {
    if (outcomes[b].first_fault == ~0u) continue;
    std::fprintf(stderr, "block %u: fault %u in group %u\n", b,
                 outcomes[b].fault, outcomes[b].first_fault);
    std::exit(1);
  }
  return ms;
}

// Bytes in which the pages of some blocks differ from what the CPU restores,
// and how many were compared.
struct Comparison {
  uint64_t different = 0, compared = 0;
};

Comparison CompareWithCpu(const std::shared_ptr<const Basis>& basis,
                          const std::vector<std::vector<Bytes>>& drawn,
                          float step, const Engine& engine) {
  const auto codec = Value(Codec::Create(basis->geometry(), basis));
  const uint64_t page_bytes = uint64_t{kPageTokens} * kHeads * kDims * 2;
  const uint32_t blocks = engine.blocks.size();
  Comparison comparison;
  for (uint32_t b : {0u, blocks / 2, blocks - 1}) {
    const RestoreBlock& block = engine.blocks[b];
    FrameHeader header;
    header.geometry = codec->geometry_digest();
    header.first_token = block.first_token;
    header.token_count = kBlockTokens;
    header.encoding = {basis->digest(), step};
    const Bytes frame = Value(WriteFrame(header, drawn[b % kDrawnBlocks]));
    header = Value(ParseFrameHeader(frame, frame.size()));
    const auto reader = Value(
        codec->Open(header, {header.key, block.first_token, block.tokens}));
    Bytes host(RawBytes(basis->geometry(), kBlockTokens));
    const uint64_t group_bytes = host.size() / kGroups,
                   part_bytes = host.size() / kLayers / 2;
    for (uint32_t g = 0; g < kGroups; ++g) {
      const auto raw =
          absl::MakeSpan(host).subspan(g * group_bytes, group_bytes);
      Check(reader->ReadSection(g, drawn[b % kDrawnBlocks][g], raw));
    }
    // The raw form is [layers][K, V][tokens][heads][dims], as the pages are.
    Bytes device(page_bytes);
    for (uint32_t p = 0; p < 2 * kLayers; ++p) {
      for (uint32_t page = 0; page < kBlockTokens / kPageTokens; ++page) {
        const uint8_t* from = engine.parts[p].base +
                              block.slots[page * kPageTokens].page * page_bytes;
        Check(
            cudaMemcpy(device.data(), from, page_bytes, cudaMemcpyDeviceToHost),
            "reading pages");
        const uint8_t* expected =
            host.data() + p * part_bytes + page * page_bytes;
        for (uint64_t i = 0; i < page_bytes; ++i)
          comparison.different += device[i] != expected[i];
        comparison.compared += page_bytes;
      }
    }
  }
  return comparison;
}

// Of the product of each group: in whole tiles, as cuBLAS is fast with.
std::vector<uint32_t> RanksOf(const Basis& basis) {
  const auto tiles = [](uint32_t rank) {
    return (rank + kRankTile - 1) / kRankTile * kRankTile;
  };
  std::vector<uint32_t> ranks;
  for (uint32_t g = 0; g < kGroups; ++g) {
    ranks.push_back(tiles(basis.groups()[g].rank) +
                    g * tiles(basis.inherited_rank()) +
                    tiles(basis.embedding().Features()));
  }
  return ranks;
}

void Print(const std::vector<double>& ms, const Ceilings& ceilings,
           double bare_ms, double flops, double raw_bytes) {
  const double restore_ms = ms[kStages],
               product_ms = ms[kFirstProduct] + ms[kOtherProducts];
  const double first_ms = ms[kBegin] + ms[kFirstDecode] + ms[kFirstProduct];
  const double decode_ms = ms[kFirstDecode] + ms[kOtherDecodes];
  std::printf("raw copy from pinned memory   %8.3f ms  %6.1f GB/s\n",
              ceilings.copy_ms, raw_bytes / ceilings.copy_ms / 1e6);
  std::printf("device copy                   %8.3f ms  %6.0f GB/s\n",
              ceilings.device_ms, raw_bytes / ceilings.device_ms / 1e6);
  std::printf("cuBLAS bf16 product           %8.3f ms  %6.0f TFLOP/s\n",
              bare_ms, flops / bare_ms / 1e9);
  std::printf(
      "restore                       %8.3f ms  %.2f times the raw copy's rate, "
      "%.3f of the product's time\n",
      restore_ms, ceilings.copy_ms / restore_ms, restore_ms / bare_ms);
  std::printf("  first group                 %8.3f ms  %.3f of the whole\n",
              first_ms, first_ms / restore_ms);
  std::printf(
      "  decoding                    %8.3f ms  %.3f of the products; the first "
      "group %.3f ms, the others %.3f ms\n",
      decode_ms, decode_ms / product_ms, ms[kFirstDecode], ms[kOtherDecodes]);
  std::printf(
      "  products with epilogue      %8.3f ms  %6.0f TOP/s, %.3f of cuBLAS\n",
      product_ms, flops / product_ms / 1e9, product_ms / bare_ms);
  std::printf("  beginning, waiting for bytes%8.3f ms, %.3f ms\n", ms[kBegin],
              ms[kOtherPayloads]);
}

void Run(const std::string& basis_path, const std::string& profile,
         uint32_t tokens) {
  const std::shared_ptr<const Basis> real = Value(Basis::Load(basis_path));
  const float step = Value(real->FindProfile(profile)).step;
  const std::shared_ptr<const Basis> basis = Stretched(*real, step);
  const LatentTables tables = MakeLatentTables();
  const std::vector<std::vector<Bytes>> drawn =
      DrawSections(*basis, tables, step);
  cudaStream_t stream;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  const Engine engine = MakeEngine(*basis, tokens);
  const Ceilings ceilings = MeasureCeilings(engine.memory, stream);
  const auto device_basis = Value(DeviceBasis::Create(ViewOf(*basis, tables)));
  RotaryCache rotary(&basis->geometry(), device_basis->rotary_layers());
  Check(rotary.Reach(tokens + kBlockTokens));
  RestoreLimits limits;
  limits.blocks_max = engine.blocks.size();
  limits.rests_max = 1024;
  const auto restorer =
      Value(GroupRestorer::Create(device_basis.get(), &rotary, limits));
  const std::vector<Payload> payloads =
      MakePayloads(drawn, step, engine.blocks.size());
  const std::vector<double> ms =
      MeasureStages(restorer.get(), engine, payloads, stream);
  Check(cudaMemsetAsync(engine.memory.data(), 0, engine.memory.bytes(), stream),
        "clearing pages");
  const double queued_ms =
      MeasureGroupByGroup(restorer.get(), engine, payloads, false, stream);
  const double waited_ms =
      MeasureGroupByGroup(restorer.get(), engine, payloads, true, stream);
  const Comparison comparison = CompareWithCpu(basis, drawn, step, engine);
  double flops = 0;
  const std::vector<uint32_t> ranks = RanksOf(*basis);
  const double bare_ms = BareProduct(ranks, tokens, stream, &flops);

  uint64_t payload_bytes = 0;
  for (const Payload& payload : payloads) {
    for (const GroupSection& section : payload.places)
      payload_bytes += section.bytes;
  }
  const double raw_bytes = engine.memory.bytes();
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "asking for the device");
  std::printf(
      "%s, %s, %u tokens, %.0f bytes a token of %.0f (%.1f times smaller), "
      "ranks",
      properties.name, profile.c_str(), tokens,
      static_cast<double>(payload_bytes) / tokens, raw_bytes / tokens,
      raw_bytes / payload_bytes);
  for (uint32_t rank : ranks) std::printf(" %u", rank);
  std::printf("\n");
  Print(ms, ceilings, bare_ms, flops, raw_bytes);
  std::printf(
      "restore, group by group       %8.3f ms queued, %.3f ms with the host "
      "waiting for each\n",
      queued_ms, waited_ms);
  std::printf(
      "device memory: basis %.1f MB, rotary tables %.1f MB, scratch %.1f MB "
      "(%.0f bytes a token)\n",
      device_basis->bytes() / 1e6, rotary.bytes() / 1e6,
      restorer->bytes() / 1e6, static_cast<double>(restorer->bytes()) / tokens);
  std::printf("equal to the CPU: %llu of %llu bytes differ\n",
              static_cast<unsigned long long>(comparison.different),
              static_cast<unsigned long long>(comparison.compared));
  if (comparison.different > 0) std::exit(1);
}

}  // namespace
}  // namespace latentkv::cuda

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s BASIS [PROFILE [TOKENS]]\n", argv[0]);
    return 2;
  }
  latentkv::cuda::Run(argv[1], argc > 2 ? argv[2] : "balanced",
                      argc > 3 ? std::atoi(argv[3]) : 16384);
  return 0;
}
