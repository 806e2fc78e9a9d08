// Pages in device memory against the CPU's gather and scatter.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "core/limits.h"
#include "kernels/cuda/pages_cuda.h"
#include "kernels/device.h"

namespace latentkv {
namespace {

constexpr uint8_t kPoison = 0xa5;

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
  }
  explicit DeviceMemory(const Bytes& from) : DeviceMemory(from.size()) {
    Set(from);
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  ~DeviceMemory() { cudaFree(data_); }
  void Set(const Bytes& from) {
    EXPECT_EQ(cudaMemcpy(data_, from.data(), bytes_, cudaMemcpyDefault),
              cudaSuccess);
  }
  Bytes Get() const {
    Bytes bytes(bytes_);
    EXPECT_EQ(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDefault),
              cudaSuccess);
    return bytes;
  }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// How engines lay out pages.
enum class Layout {
  kNhd,             // K and V apart: [pages, tokens, heads, dims]
  kHnd,             // [pages, heads, tokens, dims]
  kKvFirst,         // vLLM: [2, pages, tokens, heads, dims]
  kKvInPage,        // FlashInfer: [pages, 2, tokens, heads, dims]
  kKvInPageHnd,     // [pages, 2, heads, tokens, dims]
  kTransposedKeys,  // [pages, heads, dims, tokens]
  kPaddedRows,      // Each head's row with some bytes behind it.
  kLatents,         // [pages, tokens, heads, V then K] of one tensor
};
constexpr Layout kLayouts[] = {Layout::kNhd,         Layout::kHnd,
                               Layout::kKvFirst,     Layout::kKvInPage,
                               Layout::kKvInPageHnd, Layout::kTransposedKeys,
                               Layout::kPaddedRows,  Layout::kLatents};

// Of K or of V, of which both together have `both` dimensions.
PageStrides StridesOf(Layout layout, int64_t tokens, int64_t heads,
                      int64_t dims, int64_t both, int64_t element) {
  const int64_t row = dims * element;
  const int64_t page = tokens * heads * row;
  const int64_t shared = tokens * heads * both * element;
  switch (layout) {
    case Layout::kNhd:
    case Layout::kKvFirst:
      return {page, heads * row, row, element};
    case Layout::kHnd:
      return {page, row, tokens * row, element};
    case Layout::kKvInPage:
      return {shared, heads * row, row, element};
    case Layout::kKvInPageHnd:
      return {shared, row, tokens * row, element};
    case Layout::kLatents:
      return {shared, heads * both * element, both * element, element};
    case Layout::kTransposedKeys:
      return {page, element, tokens * row, tokens * element};
    case Layout::kPaddedRows: {
      const int64_t padded = row + 3 * element;
      return {tokens * heads * padded, heads * padded, padded, element};
    }
  }
  return {};
}

// The same pages on the host and on the device.
struct Pages {
  Geometry geometry;
  std::vector<Bytes> host;  // One allocation a layer, K and V in it.
  std::vector<DeviceMemory> device;
  PagedCache on_host, on_device;

  Pages(const Geometry& of, Layout layout, uint32_t page_tokens,
        uint64_t page_count, uint32_t shift)
      : geometry(of) {
    on_host.page_tokens = page_tokens;
    on_host.page_count = page_count;
    on_device = on_host;
    for (const LayerGeometry& layer : geometry.layers) {
      const int64_t element = DTypeBytes(layer.dtype);
      const auto strides = [&](bool keys) {
        return StridesOf(layout, page_tokens, layer.kv_heads, layer.DimOf(keys),
                         layer.DimOf(true) + layer.DimOf(false), element);
      };
      const bool latents = layout == Layout::kLatents,
                 within = latents || layout == Layout::kKvInPage ||
                          layout == Layout::kKvInPageHnd;
      const size_t begin = shift * element;
      size_t key = begin, value = begin, end = begin;
      if (latents) {
        key += layer.DimOf(false) * element;
      } else if (within) {
        value += page_tokens * layer.ChannelsOf(true) * element;
      } else {
        value += strides(true).page * page_count;
        end += strides(true).page * page_count;
      }
      end += strides(false).page * page_count;
      host.emplace_back(end, kPoison);
      device.emplace_back(host.back());
      const auto at = [&](uint8_t* base) {
        return PagedLayer{base + key, base + value, strides(true),
                          strides(false)};
      };
      on_host.layers.push_back(at(host.back().data()));
      on_device.layers.push_back(at(device.back().data()));
    }
  }
  void Fill(std::mt19937* random) {
    for (size_t i = 0; i < host.size(); ++i) {
      for (uint8_t& byte : host[i]) byte = (*random)();
      device[i].Set(host[i]);
    }
  }
};

Geometry RandomGeometry(std::mt19937* random) {
  constexpr DType kTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32,
                              DType::kFp8E4M3};
  constexpr uint32_t kDims[] = {64, 128, 96, 20, 9, 1, 256};
  Geometry geometry;
  const uint32_t layers = 1 + (*random)() % 4;
  for (uint32_t l = 0; l < layers; ++l) {
    LayerGeometry layer;
    layer.kv_heads = 1 + (*random)() % 5;
    layer.head_dim = kDims[(*random)() % 7];
    if ((*random)() % 3 == 0) layer.value_dim = 4 * layer.head_dim;
    layer.dtype = kTypes[(*random)() % 4];
    geometry.layers.push_back(layer);
  }
  return geometry;
}

class DeviceCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no device";
    device_ = *SystemDevices().Open(0);
  }
  // Slots of `blocks` blocks on other pages each.
  std::vector<std::vector<TokenRun>> Slots(const PagedCache& pages,
                                           uint32_t blocks,
                                           uint32_t first_token) {
    std::vector<uint64_t> ids(pages.page_count);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    std::vector<std::vector<TokenRun>> slots(blocks);
    for (uint32_t b = 0; b < blocks; ++b) {
      EXPECT_TRUE(RunsOfTokens(ids, pages.page_tokens, pages.page_count,
                               first_token + b * kBlockTokens, kBlockTokens,
                               &slots[b])
                      .ok());
    }
    return slots;
  }
  std::mt19937 random_{7};
  std::unique_ptr<Device> device_;
};

TEST_F(DeviceCuda, TellsDeviceMemoryFromTheHosts) {
  const DeviceMemory there(64);
  int here = 0;
  const auto pinned = *device_->AllocatePinned(64);
  EXPECT_EQ(SystemDevices().HolderOf(there.data() + 60), 0u);
  EXPECT_EQ(SystemDevices().HolderOf(&here), std::nullopt);
  EXPECT_EQ(SystemDevices().HolderOf(pinned.get()), std::nullopt);
  EXPECT_TRUE(HasDeviceBackend());
}

TEST_F(DeviceCuda, GatherAndScatterAreTheCpusForEveryLayoutShapeAndAlignment) {
  for (int round = 0; round < 140; ++round) {
    const Layout layout = kLayouts[round % 7];
    const Geometry geometry = RandomGeometry(&random_);
    const uint32_t page_tokens =
        std::vector<uint32_t>{16, 32, 48, 64, 128, 256}[random_() % 6];
    const uint32_t blocks = 1 + random_() % 5, first_token = random_() % 3 * 16,
                   layers = geometry.layers.size();
    const uint64_t page_count =
        (blocks * kBlockTokens + first_token + page_tokens - 1) / page_tokens +
        2;
    SCOPED_TRACE(testing::Message()
                 << round << " layout " << static_cast<int>(layout)
                 << " pages of " << page_tokens);
    Pages pages(geometry, layout, page_tokens, page_count, random_() % 3);
    pages.Fill(&random_);
    const auto slots = Slots(pages.on_host, blocks, first_token);
    const uint64_t bytes = RawBytes(geometry, kBlockTokens),
                   stride = (bytes + 15) / 16 * 16;
    const PinnedMemory raw = *device_->AllocatePinned(stride * blocks);
    std::memset(raw.get(), kPoison, stride * blocks);
    // Room for two blocks: the others wait in the lane's queue.
    auto lane = *device_->OpenLane(geometry, 2);
    std::vector<BlockCopy> copies;
    for (uint32_t b = 0; b < blocks; ++b)
      copies.push_back({slots[b], raw.get() + b * stride});
    ASSERT_TRUE(lane->Gather(pages.on_device, copies).ok());
    ASSERT_TRUE((*lane->Record())->Wait().ok());
    for (uint32_t b = 0; b < blocks; ++b) {
      Bytes expected(bytes);
      GatherRaw(geometry, pages.on_host, slots[b], absl::MakeSpan(expected));
      ASSERT_EQ(std::memcmp(expected.data(), copies[b].raw, bytes), 0)
          << "block " << b;
      for (uint64_t i = bytes; i < stride; ++i)
        ASSERT_EQ(copies[b].raw[i], kPoison);
    }

    // Other values, some of the layers, and nothing else.
    const uint32_t first = random_() % layers,
                   last = first + 1 + random_() % (layers - first);
    const uint64_t part = RawBytes(geometry, first, last, kBlockTokens);
    for (uint32_t b = 0; b < blocks; ++b) {
      for (uint64_t i = 0; i < part; ++i) copies[b].raw[i] = random_();
      ScatterRaw(geometry, first, last, {copies[b].raw, part}, pages.on_host,
                 slots[b]);
      ASSERT_TRUE(lane->Scatter(pages.on_device, first, last, copies[b]).ok());
    }
    ASSERT_TRUE((*lane->Record())->Wait().ok());
    for (uint32_t l = 0; l < layers; ++l)
      ASSERT_EQ(pages.device[l].Get(), pages.host[l]) << "layer " << l;
  }
}

TEST_F(DeviceCuda, UnitsAreAsLargeAsTheAlignmentAllows) {
  Geometry geometry;
  geometry.layers.resize(1);
  geometry.layers[0].kv_heads = 3;
  geometry.layers[0].head_dim = 64;
  const auto unit = [&](Layout layout, uint32_t shift) {
    Pages pages(geometry, layout, 16, 4, shift);
    return (*PagePartsOf(geometry, pages.on_device, 0, 1))[0];
  };
  EXPECT_EQ(unit(Layout::kNhd, 0).unit_bytes, 16u);
  EXPECT_EQ(unit(Layout::kNhd, 0).rows, 1u) << "a token lies in one piece";
  EXPECT_EQ(unit(Layout::kHnd, 0).unit_bytes, 16u);
  EXPECT_EQ(unit(Layout::kHnd, 0).rows, 3u);
  EXPECT_EQ(unit(Layout::kHnd, 2).unit_bytes, 4u);
  EXPECT_EQ(unit(Layout::kPaddedRows, 0).unit_bytes, 2u);
  EXPECT_EQ(unit(Layout::kTransposedKeys, 0).unit_bytes, 2u);
  Pages odd(geometry, Layout::kNhd, 16, 4, 0);
  odd.on_device.layers[0].value += 1;
  EXPECT_TRUE(absl::IsInvalidArgument(
      PagePartsOf(geometry, odd.on_device, 0, 1).status()));
}

void CUDART_CB Sleep(void*) {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

// The engine writes late, and overwrites at once: both in its stream, which
// never waits on the host.
TEST_F(DeviceCuda, GatherIsOrderedWithTheEnginesStream) {
  const Geometry geometry = RandomGeometry(&random_);
  Pages pages(geometry, Layout::kNhd, 16, 6, 0);
  pages.Fill(&random_);
  const auto slots = Slots(pages.on_host, 1, 0);
  const uint64_t bytes = RawBytes(geometry, kBlockTokens);
  const PinnedMemory raw = *device_->AllocatePinned(bytes);
  auto lane = *device_->OpenLane(geometry, 1);
  Bytes expected(bytes);
  GatherRaw(geometry, pages.on_host, slots[0], absl::MakeSpan(expected));
  std::vector<DeviceMemory> computed;
  for (size_t l = 0; l < pages.host.size(); ++l) {
    computed.emplace_back(pages.host[l]);
    pages.device[l].Set(Bytes(pages.host[l].size(), kPoison));
  }
  cudaStream_t engine;
  ASSERT_EQ(cudaStreamCreateWithFlags(&engine, cudaStreamNonBlocking),
            cudaSuccess);
  ASSERT_EQ(cudaLaunchHostFunc(engine, Sleep, nullptr), cudaSuccess);
  for (size_t l = 0; l < pages.host.size(); ++l) {
    cudaMemcpyAsync(pages.device[l].data(), computed[l].data(),
                    pages.host[l].size(), cudaMemcpyDeviceToDevice, engine);
  }
  ASSERT_TRUE(lane->Await(**device_->Record(engine)).ok());
  const BlockCopy copy{slots[0], raw.get()};
  const auto read = lane->Gather(pages.on_device, {&copy, 1});
  ASSERT_TRUE(read.ok());
  ASSERT_TRUE(device_->Hold(engine, **read).ok());
  for (size_t l = 0; l < pages.host.size(); ++l) {
    cudaMemsetAsync(pages.device[l].data(), 0, pages.host[l].size(), engine);
  }
  ASSERT_TRUE((*lane->Record())->Wait().ok());
  EXPECT_EQ(std::memcmp(expected.data(), raw.get(), bytes), 0);
  cudaStreamSynchronize(engine);
  cudaStreamDestroy(engine);
}

// An engine captures graphs while a thread of ours takes memory and gives it
// back.
TEST_F(DeviceCuda, WhatOtherThreadsDoIsNothingToACaptureOfTheEngine) {
  const Geometry geometry = RandomGeometry(&random_);
  cudaStream_t stream;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const DeviceMemory memory(Bytes(1024, kPoison));
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
            cudaSuccess);
  absl::Status status;
  std::thread([&] {
    status = device_->OpenLane(geometry, 4).status();
    status.Update(device_->AllocatePinned(1 << 20).status());
  }).join();
  EXPECT_EQ(cudaMemsetAsync(memory.data(), 0, 1024, stream), cudaSuccess);
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  EXPECT_TRUE(status.ok()) << status;
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaGetLastError();  // None of the next test's.
}

TEST_F(DeviceCuda, LaunchesCanBeCaptured) {
  const Geometry geometry = RandomGeometry(&random_);
  Pages pages(geometry, Layout::kHnd, 64, 3, 0);
  pages.Fill(&random_);
  const auto slots = Slots(pages.on_host, 1, 0);
  const auto parts =
      *PagePartsOf(geometry, pages.on_device, 0, geometry.layers.size());
  Bytes part_bytes(parts.size() * sizeof(PagePart)),
      slot_bytes(kBlockTokens * sizeof(TokenSlot));
  std::memcpy(part_bytes.data(), parts.data(), part_bytes.size());
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    const TokenSlot slot{static_cast<uint32_t>(slots[0][0].page), t};
    std::memcpy(slot_bytes.data() + t * sizeof(slot), &slot, sizeof(slot));
  }
  const DeviceMemory table(part_bytes), where(slot_bytes),
      raw(Bytes(RawBytes(geometry, kBlockTokens), kPoison));
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
            cudaSuccess);
  const absl::Status status = GatherRawOnDevice(
      {reinterpret_cast<const PagePart*>(table.data()),
       static_cast<uint32_t>(parts.size()), UnitsMax(parts),
       reinterpret_cast<const TokenSlot*>(where.data()), 1, raw.data(), 0},
      stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  Bytes expected(RawBytes(geometry, kBlockTokens));
  GatherRaw(geometry, pages.on_host, slots[0], absl::MakeSpan(expected));
  EXPECT_EQ(raw.Get(), expected);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// Milliseconds that one of many calls of `work` takes in `stream`.
template <typename Work>
float Milliseconds(cudaStream_t stream, const Work& work) {
  constexpr int kRepeats = 20;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  work();
  cudaEventRecord(begin, stream);
  for (int i = 0; i < kRepeats; ++i) work();
  cudaEventRecord(end, stream);
  cudaEventSynchronize(end);
  float took = 0;
  cudaEventElapsedTime(&took, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return took / kRepeats;
}

// Of an 8B model: 32 layers of 8 heads of 128. The bound is low, since others
// may use the device; the rates are printed.
TEST_F(DeviceCuda, LargeRunsAreCopiedNearlyAtTheRateOfTheDevicesOwnCopy) {
  Geometry geometry;
  geometry.layers.resize(32);
  for (LayerGeometry& layer : geometry.layers)
    layer.kv_heads = 8, layer.head_dim = 128;
  constexpr uint32_t kBlocks = 64;
  for (const Layout layout :
       {Layout::kKvFirst, Layout::kHnd, Layout::kKvInPage}) {
    Pages pages(geometry, layout, 16, kBlocks * 4, 0);
    const auto slots = Slots(pages.on_host, kBlocks, 0);
    const auto parts = *PagePartsOf(geometry, pages.on_device, 0, 32);
    Bytes part_bytes(parts.size() * sizeof(PagePart)), slot_bytes;
    std::memcpy(part_bytes.data(), parts.data(), part_bytes.size());
    for (const auto& slot : slots) {
      for (const TokenRun& run : slot) {
        for (uint32_t t = 0; t < run.count; ++t) {
          const TokenSlot at{static_cast<uint32_t>(run.page), run.offset + t};
          slot_bytes.insert(slot_bytes.end(),
                            reinterpret_cast<const uint8_t*>(&at),
                            reinterpret_cast<const uint8_t*>(&at) + sizeof(at));
        }
      }
    }
    const uint64_t bytes = RawBytes(geometry, kBlockTokens);
    const DeviceMemory table(part_bytes), where(slot_bytes),
        raw(kBlocks * bytes), plain(kBlocks * bytes);
    const PageCopy copy{reinterpret_cast<const PagePart*>(table.data()),
                        static_cast<uint32_t>(parts.size()),
                        UnitsMax(parts),
                        reinterpret_cast<const TokenSlot*>(where.data()),
                        kBlocks,
                        raw.data(),
                        bytes};
    cudaStream_t stream;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    const float by_copy = Milliseconds(stream, [&] {
      cudaMemcpyAsync(plain.data(), raw.data(), kBlocks * bytes,
                      cudaMemcpyDeviceToDevice, stream);
    });
    const float by_gather =
        Milliseconds(stream, [&] { (void)GatherRawOnDevice(copy, stream); });
    const float by_scatter =
        Milliseconds(stream, [&] { (void)ScatterRawOnDevice(copy, stream); });
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    cudaStreamDestroy(stream);
    const auto rate = [&](float took) { return kBlocks * bytes / took / 1e6; };
    std::printf(
        "layout %d: copy %.0f GB/s, gather %.0f (%.0f %%), scatter %.0f (%.0f "
        "%%)\n",
        static_cast<int>(layout), rate(by_copy), rate(by_gather),
        100 * by_copy / by_gather, rate(by_scatter),
        100 * by_copy / by_scatter);
    EXPECT_LT(by_gather, 2 * by_copy);
    EXPECT_LT(by_scatter, 2 * by_copy);
  }
}

}  // namespace
}  // namespace latentkv
