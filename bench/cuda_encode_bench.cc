// Encodes on a GPU, as a share of the prefill that computes the same tokens:
// keys and values in pages to frames in pinned memory. Pages hold what
// synthetic sections (cuda_model.h) restore to. The prefill's time is the FLOPs
// of Llama-3.1-8B over cuBLAS's rate in bf16, measured in the same run.
//
//     latentkv_cuda_encode_bench BASIS [PROFILE [TOKENS [BLOCKS_AT_ONCE]]]
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>

#include "bench/cuda_model.h"
#include "codec/basis_view.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "kernels/cuda/group_encoder.h"
#include "kernels/cuda/group_restorer.h"

namespace latentkv::cuda {
namespace {

constexpr uint32_t kHidden = 4096, kIntermediate = 14336;

// TFLOP/s of bf16 with sums in fp32: the model's largest product.
double ProductRate(uint32_t tokens, cudaStream_t stream) {
  auto a = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * kHidden));
  auto b = Value(DeviceArray<uint16_t>::Make(size_t{kIntermediate} * kHidden));
  auto c = Value(DeviceArray<uint16_t>::Make(size_t{tokens} * kIntermediate));
  std::vector<uint16_t> values(std::max(a.size(), b.size()));
  std::mt19937 random(3);
  // About +-0.01 to 1.
  for (uint16_t& value : values)
    value = 0x3c00 + random() % 0x400 + (random() % 2 << 15);
  for (auto* matrix : {&a, &b}) {
    Check(cudaMemcpy(matrix->data(), values.data(), matrix->bytes(),
                     cudaMemcpyHostToDevice),
          "filling");
  }
  cublasHandle_t handle;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) std::exit(1);
  cublasSetStream(handle, stream);
  const float one = 1, zero = 0;
  const double ms = Timer(stream).Median([&] {
    if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kIntermediate, tokens,
                     kHidden, &one, b.data(), CUDA_R_16BF, kHidden, a.data(),
                     CUDA_R_16BF, kHidden, &zero, c.data(), CUDA_R_16BF,
                     kIntermediate, CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
      std::exit(1);
    }
  });
  cublasDestroy(handle);
  return 2.0 * tokens * kHidden * kIntermediate / ms / 1e9;
}

// FLOPs of a prefill: products with weights, and causal attention.
double WeightFlops(uint32_t tokens) {
  const double weights = 2.0 * kHidden * kHidden +
                         2.0 * kHidden * kHeads * kDims +
                         3.0 * kHidden * kIntermediate;
  return 2.0 * weights * kLayers * tokens;
}
double AttentionFlops(uint32_t tokens) {
  return 2.0 * kLayers * kHidden * tokens * tokens;
}

void Restore(const std::vector<Payload>& payloads, const Engine& engine,
             DeviceBasis* basis, const RotaryCache* rotary,
             cudaStream_t stream) {
  RestoreLimits limits;
  limits.blocks_max = engine.blocks.size();
  const auto restorer = Value(GroupRestorer::Create(basis, rotary, limits));
  Check(restorer->Begin(engine.blocks, engine.parts, stream));
  for (uint32_t g = 0; g < kGroups; ++g) {
    const PinnedArray<uint8_t>& bytes = payloads[g].bytes;
    Check(restorer->Add(g, bytes.data(), bytes.size(), payloads[g].places,
                        stream));
    Check(restorer->Decode(g, g + 1, stream));
    Check(restorer->Restore(g, stream));
  }
  Check(cudaStreamSynchronize(stream), "restoring");
}

// A batch that the device encoded: `count` blocks from block `first` on.
struct Batch {
  const Basis& basis;
  const Engine& engine;
  const EncodeReport report;
  uint8_t* const room;
  const uint32_t first, count;
  const float step;

  std::vector<uint64_t> SectionsOf(uint32_t block) const {
    std::vector<uint64_t> bytes;
    for (uint32_t g = 0; g < kGroups; ++g)
      bytes.push_back(report.section_bytes[size_t{g} * count + block]);
    return bytes;
  }
};

// Headers and checksums, by the host's cores. Milliseconds.
double Seal(const Batch& batch) {
  for (uint32_t b = 0; b < batch.count; ++b) {
    if (batch.report.faults[b] != 0) {
      std::fprintf(stderr, "block %u: fault %u\n", b, batch.report.faults[b]);
      std::exit(1);
    }
  }
  const Digest geometry = batch.basis.geometry().ComputeDigest();
  const auto sealing = std::chrono::steady_clock::now();
  OnAllCores(batch.count, [&](uint32_t b) {
    FrameHeader header;
    header.geometry = geometry;
    header.first_token = batch.engine.blocks[batch.first + b].first_token;
    header.token_count = kBlockTokens;
    header.encoding = {batch.basis.digest(), batch.step};
    Check(SealFrame(header, batch.SectionsOf(b),
                    batch.room + batch.report.frames[b])
              .status());
  });
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now() - sealing)
      .count();
}

// What is in the frames, beside what the pages were restored from.
struct Contents {
  uint64_t frame_bytes = 0;
  uint64_t latents = 0, different = 0;  // Of three blocks.
  double loss = 0;                      // Mean of the blocks.
};
Contents Inspect(const Batch& batch, const LatentTables& tables,
                 const std::vector<std::vector<Bytes>>& drawn) {
  Contents contents;
  for (uint32_t b = 0; b < batch.count; ++b) {
    uint64_t bytes = FrameHeaderBytes(kGroups);
    for (uint64_t section : batch.SectionsOf(b)) bytes += section;
    const ByteSpan frame(batch.room + batch.report.frames[b], bytes);
    const FrameHeader header = Value(VerifyFrame(frame));
    contents.frame_bytes += bytes;
    for (uint32_t g = 0; g < kGroups; ++g)
      contents.loss +=
          batch.report.losses[size_t{g} * batch.count + b] / batch.count;
    if (b >= 3) continue;
    for (uint32_t g = 0; g < kGroups; ++g) {
      const FrameSection& at = header.sections[g];
      const BasisGroup& group = batch.basis.groups()[g];
      const SectionShape shape = {kLayersPerGroup * 2 * kHeads * kDims * 2, 0};
      const auto read = [&](ByteSpan payload) {
        return Value(
            ReadLatentSection(group, tables, batch.step, shape, payload));
      };
      const auto mine = read(frame.subspan(at.offset, at.bytes));
      const auto from = read(drawn[(batch.first + b) % kDrawnBlocks][g]);
      for (size_t i = 0; i < from.latents.size(); ++i)
        contents.different += mine.latents[i] != from.latents[i];
      contents.latents += from.latents.size();
    }
  }
  return contents;
}

void Run(const std::string& basis_path, const std::string& profile,
         uint32_t tokens, uint32_t at_once) {
  const std::shared_ptr<const Basis> real = Value(Basis::Load(basis_path));
  const float step = Value(real->FindProfile(profile)).step;
  const std::shared_ptr<const Basis> basis = Stretched(*real, step);
  const LatentTables tables = MakeLatentTables();
  const std::vector<std::vector<Bytes>> drawn =
      DrawSections(*basis, tables, step);
  const BasisView view = ViewOf(*basis, tables);
  cudaStream_t stream;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  const auto device_basis = Value(DeviceBasis::Create(view));
  const auto opened = std::chrono::steady_clock::now();
  const auto device_encoder = Value(DeviceEncoder::Create(view, *device_basis));
  const double open_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - opened)
          .count();
  RotaryCache rotary(&basis->geometry(), device_basis->rotary_layers());
  Check(rotary.Reach(tokens + kBlockTokens));
  const Engine engine = MakeEngine(*basis, tokens);
  Restore(MakePayloads(drawn, step, engine.blocks.size()), engine,
          device_basis.get(), &rotary, stream);

  EncodeLimits limits;
  limits.blocks_max = at_once;
  limits.header_bytes = FrameHeaderBytes(kGroups);
  const auto encoder = Value(GroupEncoder::Create(
      device_basis.get(), device_encoder.get(), &rotary, limits));
  const uint32_t blocks = engine.blocks.size();
  const uint64_t room_bytes = uint64_t{at_once} * kBlockTokens * 8192;
  const auto room = Value(PinnedArray<uint8_t>::Make(room_bytes));
  const auto encode = [&](uint32_t first) {
    const auto some =
        absl::MakeConstSpan(engine.blocks).subspan(first, at_once);
    Check(encoder->Encode(some, engine.parts, step, LossChannels::kSome,
                          room.data(), room_bytes, stream));
  };
  double encode_ms = 0;
  for (uint32_t first = 0; first < blocks; first += at_once)
    encode_ms += Timer(stream).Median([&] { encode(first); });

  const uint32_t first = (blocks - 1) / at_once * at_once,
                 count = blocks - first;
  const Batch batch = {*basis, engine, encoder->report(), room.data(), first,
                       count,  step};
  const double seal_ms = Seal(batch) * blocks / count;
  const Contents contents = Inspect(batch, tables, drawn);

  const double rate = ProductRate(tokens, stream);
  const double weights_ms = WeightFlops(tokens) / rate / 1e9,
               prefill_ms = weights_ms + AttentionFlops(tokens) / rate / 1e9;
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "asking for the device");
  std::printf(
      "%s, %s, %u tokens, %u at once, %.0f bytes a token (%.1f times "
      "smaller)\n",
      properties.name, profile.c_str(), tokens, at_once * kBlockTokens,
      static_cast<double>(contents.frame_bytes) / count / kBlockTokens,
      static_cast<double>(basis->geometry().BytesPerToken()) * count *
          kBlockTokens / contents.frame_bytes);
  std::printf("cuBLAS bf16                 %8.0f TFLOP/s\n", rate);
  std::printf(
      "prefill at that rate        %8.1f ms, of which weights %.1f ms\n",
      prefill_ms, weights_ms);
  std::printf(
      "encoding                    %8.3f ms  %.4f of the prefill, %.4f of its "
      "weights alone\n",
      encode_ms, encode_ms / prefill_ms, encode_ms / weights_ms);
  std::printf("headers and checksums       %8.3f ms  on %u cores of the host\n",
              seal_ms, std::thread::hardware_concurrency());
  std::printf(
      "latents of 3 blocks         %llu of %llu differ from those that the "
      "pages were restored from; loss %.4g\n",
      static_cast<unsigned long long>(contents.different),
      static_cast<unsigned long long>(contents.latents), contents.loss);
  std::printf(
      "device memory: encoder %.1f MB beside the basis's %.1f MB, scratch %.1f "
      "MB; opened in %.1f s\n",
      device_encoder->bytes() / 1e6, device_basis->bytes() / 1e6,
      encoder->bytes() / 1e6, open_s);
  if (contents.different > contents.latents / 50) std::exit(1);
}

}  // namespace
}  // namespace latentkv::cuda

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: %s BASIS [PROFILE [TOKENS [BLOCKS_AT_ONCE]]]\n",
                 argv[0]);
    return 2;
  }
  const uint32_t tokens = argc > 3 ? std::atoi(argv[3]) : 16384;
  latentkv::cuda::Run(
      argv[1], argc > 2 ? argv[2] : "balanced", tokens,
      argc > 4 ? std::atoi(argv[4]) : tokens / latentkv::kBlockTokens);
  return 0;
}
