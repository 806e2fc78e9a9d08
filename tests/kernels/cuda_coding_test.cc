// The entropy coder of sections on a device, of latents that are given: what it
// writes is what the CPU writes of them, to the byte, where latents are sparse
// and end where they like.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "codec/basis_view.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "kernels/cuda/device_encoder.h"
#include "kernels/cuda/latent_encode.h"
#include "tests/kernels/cuda_shapes.h"

namespace latentkv::cuda {
namespace {

constexpr float kStep = 1.5f;
constexpr uint32_t kBlocks = 300;

class DeviceCoding : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no device";
    shape_.rank = 250;
    basis_ = BasisOf(shape_, &random_);
    const BasisView view = ViewOf(*basis_, tables_);
    device_basis_ = DeviceBasis::Create(view).value();
    encoder_ = DeviceEncoder::Create(view, *device_basis_).value();
  }

  // [kBlocks][kBlockTokens][rank] of the first group, each not 0 with a
  // probability that falls from `first` to `last` over the rows.
  std::vector<int8_t> Draw(float first, float last) {
    const uint32_t rank = basis_->groups()[0].rank;
    std::vector<int8_t> latents(size_t{kBlocks} * kBlockTokens * rank);
    for (size_t i = 0; i < latents.size(); ++i) {
      const float at = static_cast<float>(i % rank) / rank;
      if (random_.Between(0, 1) >= first + (last - first) * at) continue;
      // Some of them beyond what their class codes.
      const int most = random_.Below(50) == 0 ? 100 : 2;
      latents[i] = 1 + random_.Below(most);
      if (random_.Below(2) == 0) latents[i] = -latents[i];
    }
    return latents;
  }

  // The sections that the device writes.
  std::vector<Bytes> Coded(const std::vector<int8_t>& latents) {
    const DeviceGroup& group = device_basis_->groups()[0];
    const uint32_t stride =
        (group.rank + kRankTile - 1) / kRankTile * kRankTile;
    std::vector<int8_t> rows(size_t{kBlocks} * kBlockTokens * stride);
    for (size_t t = 0; t < size_t{kBlocks} * kBlockTokens; ++t) {
      std::copy_n(latents.data() + t * group.rank, group.rank,
                  rows.data() + t * stride);
    }
    const uint64_t room = SectionRoom(group.rank, 0, 0);
    const CodingGroup coding = {group.first_layer,
                                group.last_layer,
                                group.rank,
                                0,
                                0,
                                0,
                                device_basis_->Model(0, kStep).value(),
                                0,
                                0,
                                room};
    const auto of = [](auto values) {
      return DeviceArray<typename decltype(values)::value_type>::Copy(values)
          .value();
    };
    const auto groups = of(std::vector<CodingGroup>{coding});
    const auto device_latents = of(rows);
    const auto rest_tiles =
        of(std::vector<uint16_t>(size_t{kBlocks} * kRankTilesMax, kNoRest));
    const auto exact = of(std::vector<unsigned long long>(kBlocks));
    const auto predicted = of(std::vector<uint8_t>(kBlocks, 1));
    const auto sinks = of(std::vector<uint8_t>(kBlocks));
    const auto shifts = of(std::vector<uint8_t>(
        size_t{kBlocks} * (group.rank + 15) / 16 * kBlockTokens + 1024));
    const auto sections = of(std::vector<uint8_t>(kBlocks * room, kPoison));
    const auto faults = of(std::vector<uint32_t>(kBlocks));
    const auto bytes = of(std::vector<uint32_t>(kBlocks));
    const auto offsets = of(std::vector<uint64_t>(kBlocks));
    CodingParams params = {};
    params.groups = 1;
    params.blocks = kBlocks;
    params.group = groups.data();
    params.ranges = device_basis_->tables().ranges;
    params.magnitude_max = encoder_->magnitude_max();
    params.latents = device_latents.data();
    params.latent_stride = stride;
    params.rest_tiles = rest_tiles.data();
    params.exact = exact.data();
    params.predicted = predicted.data();
    params.sinks = sinks.data();
    params.shifts = shifts.data();
    params.sections = sections.data();
    params.faults = faults.data();
    params.section_bytes = bytes.data();
    params.section_offsets = offsets.data();
    EXPECT_TRUE(CodeSections(params, shape_.dtype, 132, nullptr).ok());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const auto back = [](const auto& array, auto* values) {
      EXPECT_EQ(cudaMemcpy(values->data(), array.data(),
                           values->size() * sizeof((*values)[0]),
                           cudaMemcpyDeviceToHost),
                cudaSuccess);
    };
    Bytes all(kBlocks * room);
    std::vector<uint32_t> lengths(kBlocks), found(kBlocks);
    std::vector<uint64_t> at(kBlocks);
    back(sections, &all);
    back(bytes, &lengths);
    back(offsets, &at);
    back(faults, &found);
    std::vector<Bytes> coded;
    for (uint32_t b = 0; b < kBlocks; ++b) {
      EXPECT_EQ(found[b], 0u) << b;
      coded.emplace_back(all.begin() + at[b], all.begin() + at[b] + lengths[b]);
    }
    return coded;
  }

  Shape shape_;
  Random random_{5};
  const LatentTables tables_ = MakeLatentTables();
  std::shared_ptr<const Basis> basis_;
  std::unique_ptr<DeviceBasis> device_basis_;
  std::unique_ptr<DeviceEncoder> encoder_;
};

TEST_F(DeviceCoding, WritesSparseLatentsAsTheCpuDoesToTheLastRow) {
  const BasisGroup& group = basis_->groups()[0];
  for (const auto& [first, last] : {std::pair{0.9f, 0.14f},
                                    {0.6f, 0.0f},
                                    {0.14f, 0.14f},
                                    {0.3f, 0.005f},
                                    {0.03f, 0.03f},
                                    {0.002f, 0.0f},
                                    {0.0f, 0.0f}}) {
    const std::vector<int8_t> latents = Draw(first, last);
    const std::vector<Bytes> coded = Coded(latents);
    uint32_t different = 0;
    for (uint32_t b = 0; b < kBlocks; ++b) {
      LatentSection section;
      section.predicted = true;
      const auto begin =
          latents.begin() + size_t{b} * kBlockTokens * group.rank;
      section.latents.assign(begin, begin + kBlockTokens * group.rank);
      different += coded[b] !=
                   WriteLatentSection(group, tables_, kStep, section).value();
    }
    EXPECT_EQ(different, 0u) << "of " << kBlocks << " sections of latents from "
                             << first << " to " << last;
  }
}

}  // namespace
}  // namespace latentkv::cuda
