#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/section_checksum.cuh"
#include "kernels/cuda/section_decoder.cuh"

namespace latentkv::cuda {
namespace {

using decode::kTeams;
using decode::kThreads;
using decode::kWarp;
using decode::kWarps;
using decode::SectionDecoder;
using decode::Shared;

// Symbols begin at a multiple of kProbabilityOne.
constexpr uint32_t kSharedBytes = sizeof(Shared) + kProbabilityOne;
static_assert(kSharedBytes <= 227 * 1024);
// Copied in pieces, so that many are on their way.
constexpr uint32_t kImagePieces = 12,
                   kPieceBytes = sizeof(DecodeImage) / kImagePieces;
static_assert(sizeof(DecodeImage) % (16 * kImagePieces) == 0);

// By all threads; nothing is known of `shared` before.
__device__ void LoadImage(const DecodeImage* image, Shared* shared) {
  if (threadIdx.x == 0) {
    InitBarrier(&shared->loaded, 1);
    FenceBarriers();
    ArriveExpecting(&shared->loaded, sizeof(DecodeImage));
    for (uint32_t i = 0; i < kImagePieces; ++i) {
      CopyBytes(reinterpret_cast<const uint8_t*>(image) + i * kPieceBytes,
                kPieceBytes, &shared->loaded,
                reinterpret_cast<uint8_t*>(&shared->image) + i * kPieceBytes);
    }
  }
  if (threadIdx.x < kTeams) shared->teams[threadIdx.x] = {};
  __syncthreads();
  Wait(&shared->loaded, 0);
  // Addresses from now on.
  if (threadIdx.x < kWindowClasses)
    shared->image.first_ranges[threadIdx.x] += SharedAddress(&shared->image);
  __syncthreads();
}

// The other warp of a team: brings a section over in order, and checks it.
__device__ __forceinline__ void Fetch(const DecodeParams& params,
                                      const DecodeImage& image,
                                      const SectionSource& source,
                                      SectionTeam* team, uint32_t team_index) {
  const uint32_t lane = threadIdx.x % kWarp;
  bool sound = false;
  if (source.payload != nullptr) {
    const size_t offset = source.payload - params.payload;
    FetchSection(params.pinned + offset, source.bytes, params.payload + offset,
                 team, lane);
    sound = SectionChecksum(image, source.payload, source.bytes, lane) ==
            source.crc32c;
  }
  if (lane == 0) team->sound = sound;
  Meet(team_index);
  if (lane == 0) team->there = 0;
}

__global__ void __launch_bounds__(kThreads, 1)
    DecodeKernel(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t begin = SharedAddress(memory);
  Shared& shared = *reinterpret_cast<Shared*>(
      memory + (kProbabilityOne - begin % kProbabilityOne) % kProbabilityOne);
  LoadImage(params.tables.image, &shared);
  const bool teams = params.pinned != nullptr;
  const uint32_t count =
      (params.last_group - params.first_group) * params.blocks;
  // Through a shuffle, so that the compiler knows that the warp stays together.
  const uint32_t warp = __shfl_sync(~0u, threadIdx.x / kWarp, 0);
  const uint32_t decoders = teams ? kTeams : kWarps;
  // Few sections have their two warps on different schedulers.
  const uint32_t team = warp < decoders ? warp : (warp + 2) % kTeams;
  // Neighbouring sections go to different multiprocessors: few of them spread
  // over all.
  for (uint32_t i = team * gridDim.x + blockIdx.x; i < count;
       i += decoders * gridDim.x) {
    const uint32_t group = params.first_group + i / params.blocks,
                   block = i % params.blocks;
    if (warp >= decoders) {
      Fetch(params, shared.image,
            params.sources[size_t{group} * params.blocks + block],
            &shared.teams[team], team);
    } else {
      SectionDecoder(params, shared, group, block,
                     teams ? &shared.teams[team] : nullptr, team)
          .Run();
    }
    if (teams) Meet(team);
  }
}

}  // namespace

absl::Status DecodeSections(const DecodeParams& params,
                            uint32_t multiprocessors, cudaStream_t stream) {
  if (params.blocks == 0 || params.first_group == params.last_group)
    return absl::OkStatus();
  const cudaError_t error = cudaFuncSetAttribute(
      DecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess)
    return CudaStatus(error, "asking for shared memory");
  DecodeKernel<<<multiprocessors, kThreads, kSharedBytes, stream>>>(params);
  return LaunchStatus("decoding sections on the device");
}

}  // namespace latentkv::cuda
