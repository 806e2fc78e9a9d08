// The restore on a device against the codec's on the CPU: the same frames into
// the same pages, every byte of which is compared, poison included.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "codec/basis_view.h"
#include "codec/codec.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/heads.h"
#include "tests/codec/synthetic.h"
#include "tests/kernels/cuda_shapes.h"

namespace latentkv::cuda {
namespace {

class DeviceRestore : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no device";
  }
};

TEST_P(DeviceRestore, GivesTheBitsOfTheCpuInEveryPage) {
  const Shape shape = GetParam();
  Random random(shape.rank + shape.blocks);
  const std::shared_ptr<const Basis> basis = BasisOf(shape, &random);
  const std::unique_ptr<Codec> codec =
      Codec::Create(basis->geometry(), basis).value();
  const LatentTables tables = MakeLatentTables();
  const uint32_t groups = basis->groups().size();

  std::vector<uint32_t> tokens = {7, 8, 9, 10};
  while (tokens.size() < (shape.first_block + shape.blocks) * kBlockTokens)
    tokens.push_back(random.Below(320));
  std::vector<uint64_t> page_ids(tokens.size() / shape.page_tokens + 1);
  // Page 0 stays poison.
  for (size_t i = 0; i < page_ids.size(); ++i)
    page_ids[i] = page_ids.size() - i;
  const std::vector<HeadRange> heads =
      HeadsOfRank(basis->geometry(), shape.tp_rank, shape.ranks).value();
  const Geometry held = WithHeads(basis->geometry(), heads);
  Shape held_shape = shape;
  held_shape.kv_heads = heads[0].count;
  Pages pages(held_shape, page_ids.size() + 1);

  std::vector<RestoreBlock> blocks;
  std::vector<std::vector<TokenSlot>> slots(shape.blocks);
  std::vector<std::vector<Bytes>> sections(shape.blocks);
  std::vector<float> steps(shape.blocks);
  std::vector<std::vector<bool>> cpu_good(shape.blocks);
  // In which group.
  std::vector<uint32_t> wrong_checksum(shape.blocks, groups);
  PagedCache cache = pages.cache();
  for (uint32_t b = 0; b < shape.blocks; ++b) {
    const uint32_t first_token = (shape.first_block + b) * kBlockTokens;
    steps[b] = std::ldexp(1.0f, -static_cast<int>(random.Below(3)));
    for (uint32_t g = 0; g < groups; ++g) {
      const LatentSection section =
          SectionOf(*basis, g, steps[b], first_token == 0, &random);
      sections[b].push_back(
          WriteLatentSection(basis->groups()[g], tables, steps[b], section)
              .value());
    }
    if (shape.wrong_checksum && b % shape.damage == 0) {
      wrong_checksum[b] = random.Below(groups);
    } else if (shape.damage > 0 && b % shape.damage == 0) {
      Bytes& damaged = sections[b][random.Below(groups)];
      damaged[random.Below(random.Below(2) == 0 ? 8 : damaged.size())] ^=
          1u << random.Below(8);
    }
    FrameHeader header;
    header.geometry = codec->geometry_digest();
    header.first_token = first_token;
    header.token_count = kBlockTokens;
    header.encoding = {basis->digest(), steps[b]};
    const Bytes frame = WriteFrame(header, sections[b]).value();
    header = ParseFrameHeader(frame, frame.size()).value();
    const absl::Span<const uint32_t> chain(tokens.data(),
                                           first_token + kBlockTokens);
    std::vector<TokenRun> runs;
    ASSERT_TRUE(RunsOfTokens(page_ids, shape.page_tokens, cache.page_count,
                             first_token, kBlockTokens, &runs)
                    .ok());
    for (const TokenRun& run : runs) {
      for (uint32_t i = 0; i < run.count; ++i)
        slots[b].push_back({static_cast<uint32_t>(run.page), run.offset + i});
    }
    const std::unique_ptr<BlockReader> reader =
        codec->Open(header, {header.key, first_token, chain}).value();
    for (uint32_t g = 0; g < groups; ++g) {
      if (g == wrong_checksum[b]) {
        cpu_good[b].push_back(false);
        break;
      }
      const BasisGroup& group = basis->groups()[g];
      Bytes raw(size_t{group.channels} * DTypeBytes(shape.dtype) *
                kBlockTokens);
      cpu_good[b].push_back(
          reader->ReadSection(g, sections[b][g], absl::MakeSpan(raw)).ok());
      if (!cpu_good[b].back()) break;
      Bytes part(
          RawBytes(held, group.first_layer, group.last_layer, kBlockTokens));
      TakeHeads(basis->geometry(), heads, group.first_layer, group.last_layer,
                kBlockTokens, raw, absl::MakeSpan(part));
      ScatterRaw(held, group.first_layer, group.last_layer, part, cache, runs);
    }
    blocks.push_back({first_token, chain, 0, slots[b]});
  }

  const std::unique_ptr<DeviceBasis> device_basis =
      DeviceBasis::Create(ViewOf(*basis, tables), heads).value();
  RotaryCache rotary(&basis->geometry(), device_basis->rotary_layers());
  ASSERT_TRUE(rotary.Reach(tokens.size()).ok());
  RestoreLimits limits;
  limits.blocks_max = shape.blocks;
  const std::unique_ptr<GroupRestorer> restorer =
      GroupRestorer::Create(device_basis.get(), &rotary, limits).value();
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  std::vector<std::vector<GroupSection>> places(groups);
  std::vector<uint64_t> ends = {0};  // Of the groups' bytes.
  for (uint32_t g = 0; g < groups; ++g) {
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < shape.blocks; ++b) {
      const Bytes& section = sections[b][g];
      const uint32_t checksum =
          Crc32c(section) ^ (g == wrong_checksum[b] ? 1 : 0);
      places[g].push_back(
          {bytes, static_cast<uint32_t>(section.size()), checksum, steps[b]});
      bytes += (section.size() + kSectionAlignment - 1) / kSectionAlignment *
               kSectionAlignment;
    }
    ends.push_back(ends[g] + bytes);
  }
  const PinnedArray<uint8_t> payload =
      PinnedArray<uint8_t>::Make(ends[groups]).value();
  for (uint32_t g = 0; g < groups; ++g) {
    for (uint32_t b = 0; b < shape.blocks; ++b) {
      std::copy(sections[b][g].begin(), sections[b][g].end(),
                payload.data() + ends[g] + places[g][b].offset);
    }
  }
  const PinnedArray<GroupRestorer::Outcome> outcomes =
      PinnedArray<GroupRestorer::Outcome>::Make(shape.blocks).value();
  // The first group alone and the others together; then each alone.
  for (uint32_t alone : {1u, groups}) {
    ASSERT_TRUE(pages.PoisonDevice());
    ASSERT_TRUE(restorer->Begin(blocks, pages.parts(), stream).ok());
    for (uint32_t g = 0; g < groups; ++g) {
      const uint8_t* from = payload.data() + ends[g];
      if (g < alone) {
        ASSERT_TRUE(restorer
                        ->AddAndDecode(g, from, ends[g + 1] - ends[g],
                                       places[g], stream)
                        .ok());
        ASSERT_TRUE(restorer->Restore(g, stream).ok());
      } else {
        ASSERT_TRUE(
            restorer->Add(g, from, ends[g + 1] - ends[g], places[g], stream)
                .ok());
      }
    }
    ASSERT_TRUE(restorer->Decode(alone, groups, stream).ok());
    for (uint32_t g = alone; g < groups; ++g)
      ASSERT_TRUE(restorer->Restore(g, stream).ok());
    ASSERT_TRUE(restorer->Report(outcomes.data(), stream).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess)
        << cudaGetErrorString(cudaGetLastError());

    uint32_t refused = 0;
    for (uint32_t b = 0; b < shape.blocks; ++b) {
      const uint32_t good =
          std::count(cpu_good[b].begin(), cpu_good[b].end(), true);
      EXPECT_EQ(outcomes[b].first_fault, good == groups ? ~0u : good)
          << "block " << b << " fault " << outcomes[b].fault;
      refused += good < groups;
    }
    EXPECT_EQ(refused > 0, shape.damage > 0);
    const Bytes restored = pages.device();
    size_t different = 0, first = restored.size();
    for (size_t i = 0; i < restored.size(); ++i) {
      if (restored[i] == pages.host()[i]) continue;
      ++different;
      first = std::min(first, i);
    }
    EXPECT_EQ(different, 0u)
        << "of " << restored.size() << " bytes; the first at " << first << ", "
        << alone << " alone";
    // Damaged blocks are restored in part.
    const uint64_t written =
        restored.size() - std::count(restored.begin(), restored.end(), kPoison);
    EXPECT_GT(written, RawBytes(held, kBlockTokens) * shape.blocks / 2);
  }
  std::vector<uint8_t> pageable(ends[1] + kSectionAlignment);
  ASSERT_TRUE(restorer->Begin(blocks, pages.parts(), stream).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      restorer->AddAndDecode(0, pageable.data(), ends[1], places[0], stream)));
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  cudaStreamDestroy(stream);
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeviceRestore, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace latentkv::cuda
