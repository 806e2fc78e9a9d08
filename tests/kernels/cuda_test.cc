#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "kernels/cuda/reconstruct_cuda.h"
#include "kernels/reconstruct.h"
#include "kernels/rotary.h"

namespace latentkv {
namespace {

// An array in memory that host and device share.
template <typename T>
class Shared {
 public:
  explicit Shared(size_t count) : count_(count) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, count * sizeof(T)) == cudaSuccess) data_ = static_cast<T*>(memory);
  }
  template <typename Source>
  explicit Shared(const Source& source) : Shared(source.size()) {
    std::copy(source.begin(), source.end(), data_);
  }
  ~Shared() { cudaFree(data_); }
  T* data() const { return data_; }
  std::vector<T> values() const { return {data_, data_ + count_}; }

 private:
  T* data_ = nullptr;
  size_t count_;
};

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no device";
  }
  std::mt19937 random_{4};
};

TEST_F(Cuda, ReconstructGivesTheBitsOfTheCpu) {
  for (const auto& [rank, channels, tokens] : {std::array{300u, 700u, 64u}, {5u, 3u, 7u}, {1024u, 512u, 64u}}) {
    std::vector<int8_t> decoder(size_t{rank} * channels);
    std::vector<int16_t> latents(size_t{tokens} * rank);
    std::vector<float> mean(channels), scale(channels), expected(size_t{tokens} * channels);
    for (int8_t& d : decoder) d = static_cast<int8_t>(random_());
    for (int16_t& q : latents) q = random_() % 4 == 0 ? static_cast<int>(random_() % 513) - 256 : 0;
    for (float& m : mean) m = static_cast<float>(random_() % 1000) / 377;
    for (float& s : scale) s = static_cast<float>(random_() % 1000) / 9001;
    Restore(PackDecoder(decoder, rank, channels), latents, rank, tokens, scale, 0.31f, mean, absl::MakeSpan(expected));

    const Shared<int8_t> d(decoder);
    const Shared<int16_t> q(latents);
    const Shared<float> m(mean), s(scale), values(expected.size());
    ASSERT_TRUE(ReconstructOnDevice(q.data(), d.data(), m.data(), s.data(), 0.31f, tokens, rank, channels,
                                    values.data(), nullptr).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(values.values(), expected);
  }
}

TEST_F(Cuda, ScatterGivesThePagesOfTheCpu) {
  for (const RotaryPairing pairing : {RotaryPairing::kNone, RotaryPairing::kHalves, RotaryPairing::kNeighbours}) {
    for (const bool transposed : {false, true}) {
      LayerGeometry layer;
      layer.kv_heads = 3;
      layer.head_dim = 20;
      layer.pairing = pairing;
      layer.rotary_dim = pairing == RotaryPairing::kNone ? 0 : 16;
      for (uint32_t i = 0; i < layer.rotary_dim / 2; ++i) layer.inverse_frequencies.push_back(1.0 / (1 + i));
      const uint32_t page_tokens = 96, stride = 70;
      PageStrides strides{2 * page_tokens * 60, 2 * 60, 2 * 20, 2};
      if (transposed) strides = {2 * page_tokens * 60, 2, 2 * page_tokens * 20, 2 * page_tokens};
      std::vector<float> values(64 * stride);
      for (float& v : values) v = static_cast<float>(random_() % 10007) / 1234 - 4;
      const RotaryTable table = MakeRotaryTable(layer, 1000, 64);

      const Shared<float> on_device(values), cosine(table.cosine), sine(table.sine);
      const Shared<uint8_t> memory(std::vector<uint8_t>(3 * strides.page));
      ASSERT_TRUE(ScatterBf16OnDevice(on_device.data(), stride, 3, 20, {pairing, table.pairs, cosine.data(),
                                      sine.data()}, memory.data(), strides, {1, 17, 64}, nullptr).ok());
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);

      std::vector<uint8_t> expected(3 * strides.page);
      Rotate(layer, table, values.data(), stride);
      for (uint32_t t = 0; t < 64; ++t) {
        for (uint32_t c = 0; c < 60; ++c) {
          FromFloat(DType::kBf16, &values[t * stride + c], 1,
                    &expected[strides.page + (17 + t) * strides.token + c / 20 * strides.head + c % 20 * strides.dim]);
        }
      }
      EXPECT_EQ(memory.values(), expected) << static_cast<int>(pairing) << transposed;
    }
  }
}

}  // namespace
}  // namespace latentkv
