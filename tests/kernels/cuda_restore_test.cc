// The restore on a device against the codec's on the CPU: the same frames into the same pages, every byte of which is
// compared, poison included.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "codec/basis_view.h"
#include "codec/codec.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "codec/sinks.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "kernels/cuda/group_restorer.h"
#include "kernels/heads.h"
#include "tests/codec/synthetic.h"

namespace latentkv::cuda {
namespace {

constexpr uint8_t kPoison = 0xa5;

struct Shape {
  const char* name;
  DType dtype = DType::kBf16;
  uint32_t kv_heads = 2, head_dim = 64, rotary_dim = 64;
  RotaryPairing pairing = RotaryPairing::kHalves;
  uint32_t layers = 4, layers_per_group = 2;
  uint32_t rank = 200, inherited_rank = 128, dims = 40, history = 2;
  uint32_t blocks = 7, first_block = 0;
  uint32_t page_tokens = 16;
  enum Layout { kNhd, kHnd, kKeysTransposed } layout = kNhd;
  float scale = 20;           // Of the leading latents: how many are large.
  uint32_t damage = 0;        // One block in so many has a byte changed, its checksum made right again.
  uint32_t tp_rank = 0, ranks = 1;  // Whose heads the pages hold.
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.name; }

Geometry GeometryOf(const Shape& shape) {
  LayerGeometry layer;
  layer.kv_heads = shape.kv_heads;
  layer.head_dim = shape.head_dim;
  layer.rotary_dim = shape.rotary_dim;
  layer.pairing = shape.pairing;
  layer.rotary_scale = 1.25f;
  layer.dtype = shape.dtype;
  for (uint32_t i = 0; i < shape.rotary_dim / 2; ++i) {
    layer.inverse_frequencies.push_back(std::pow(1e4, -2.0 * i / shape.rotary_dim));
  }
  Geometry geometry;
  geometry.layers.assign(shape.layers, layer);
  // Layers that rotate otherwise.
  for (double& frequency : geometry.layers.back().inverse_frequencies) frequency *= 0.5;
  return geometry;
}

template <typename T, typename Draw>
std::vector<T> Drawn(size_t count, Draw draw) {
  std::vector<T> values(count);
  for (T& value : values) value = draw();
  return values;
}

std::shared_ptr<const Basis> BasisOf(const Shape& shape, Random* random) {
  BasisParts parts;
  parts.geometry = GeometryOf(shape);
  parts.description = "random";
  parts.profiles = {{"balanced", 1.0f, 1.0f}};
  const uint32_t features = shape.dims * shape.history;
  parts.embedding = {features > 0 ? 300u : 0u, shape.dims, shape.history, {}};
  parts.embedding.rows = Drawn<int8_t>(size_t{parts.embedding.vocabulary} * shape.dims, [&] { return random->Signed(20); });
  parts.inherited_rank = shape.inherited_rank;
  for (uint32_t first = 0, g = 0; first < shape.layers; first += shape.layers_per_group, ++g) {
    BasisGroup group;
    group.first_layer = first;
    group.last_layer = std::min(shape.layers, first + shape.layers_per_group);
    group.channels = (group.last_layer - first) * 2 * shape.kv_heads * shape.head_dim;
    group.rank = std::min(group.channels, shape.rank + 37 * g);
    const auto floats = [&](float low, float high) {
      return Drawn<float>(group.channels, [&] { return random->Between(low, high); });
    };
    group.mean = floats(-1, 1);
    if (features > 0) group.feature_scale = floats(0x1p-14f, 0x1p-12f);
    group.row_scale = floats(0x1p-11f, 0x1p-9f);
    group.weight = floats(0.5f, 2);
    group.sensitivity = floats(0x1p-11f, 0x1p-9f);
    float scale = shape.scale;
    for (uint32_t r = 0; r < group.rank; ++r, scale *= 0.985f) group.latent_scale.push_back(scale);
    const size_t rows = group.rank + g * shape.inherited_rank;
    group.decoder = Drawn<int8_t>(rows * group.channels, [&] { return random->Signed(127); });
    group.feature_rows = Drawn<int8_t>(size_t{features} * group.channels, [&] { return random->Signed(127); });
    parts.groups.push_back(std::move(group));
  }
  KnownSinks sinks = {{7, 8, 9, 10}, {}};
  const std::vector<float> values = Drawn<float>(
      size_t{shape.layers} * 2 * kSinkTokens * shape.kv_heads * shape.head_dim, [&] { return random->Normal(); });
  sinks.values = WriteSinks(parts.geometry, values.data());
  parts.sinks.push_back(std::move(sinks));
  return Basis::Create(std::move(parts)).value();
}

// What a writer might have written, with everything that sections can have.
LatentSection SectionOf(const Basis& basis, uint32_t index, float step, bool first_of_chain, Random* random) {
  const BasisGroup& group = basis.groups()[index];
  LatentSection section;
  section.predicted = random->Below(4) != 0;
  size_t token_bytes = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) {
    const LayerGeometry& layer = basis.geometry().layers[l];
    token_bytes += 2 * layer.KvChannels() * DTypeBytes(layer.dtype);
  }
  if (first_of_chain) {
    section.sink_source = random->Below(2) == 0 ? SinkSource::kBasis : SinkSource::kStored;
    if (section.sink_source == SinkSource::kStored) {
      // Of floats that are finite: the known ones of another group will do.
      section.sinks.resize(SinkBytes(basis.geometry(), group.first_layer, group.last_layer));
      for (uint8_t& byte : section.sinks) byte = random->Below(100);
    }
  }
  for (uint32_t t = 0; t < kBlockTokens; ++t) {
    if (random->Below(20) == 0) section.exact_tokens.push_back(t);
  }
  section.exact_values = Drawn<uint8_t>(section.exact_tokens.size() * token_bytes, [&] { return random->Below(120); });
  section.latents.assign(size_t{kBlockTokens} * group.rank, 0);
  const uint32_t rank = random->Below(6) == 0 ? random->Below(3) : group.rank - random->Below(group.rank / 2 + 1);
  const float active = random->Between(0.3f, 1.5f);
  for (uint32_t t = first_of_chain ? kSinkTokens : 0; t < kBlockTokens; ++t) {
    if (std::binary_search(section.exact_tokens.begin(), section.exact_tokens.end(), t)) continue;
    for (uint32_t r = 0; r < rank; ++r) {
      const float q = random->Laplace() * active * group.latent_scale[r] / step;
      section.latents[size_t{t} * group.rank + r] = std::clamp(static_cast<int>(std::lrint(q)), -256, 256);
    }
  }
  return section;
}

class DeviceRestore : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no device";
  }
};

// The engine's memory of K and of V of every layer, on the host and on the device.
class Pages {
 public:
  Pages(const Shape& shape, uint64_t pages) : shape_(shape), pages_(pages), element_(DTypeBytes(shape.dtype)) {
    part_bytes_ = pages * shape.page_tokens * shape.kv_heads * shape.head_dim * element_;
    host_.assign(2 * shape.layers * part_bytes_, kPoison);
    device_ = DeviceArray<uint8_t>::Copy(host_).value();
  }
  PagedCache cache() {
    PagedCache cache{{}, shape_.page_tokens, pages_};
    for (uint32_t l = 0; l < shape_.layers; ++l) {
      uint8_t* key = host_.data() + 2 * l * part_bytes_;
      cache.layers.push_back({key, key + part_bytes_, Strides(true), Strides(false)});
    }
    return cache;
  }
  std::vector<DevicePart> parts() const {
    std::vector<DevicePart> parts;
    for (uint32_t p = 0; p < 2 * shape_.layers; ++p) {
      const PageStrides strides = Strides(p % 2 == 0);
      parts.push_back({device_.data() + p * part_bytes_, strides.page, strides.token, strides.head, strides.dim});
    }
    return parts;
  }
  const Bytes& host() const { return host_; }
  Bytes device() const {
    Bytes bytes(host_.size());
    EXPECT_EQ(cudaMemcpy(bytes.data(), device_.data(), bytes.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return bytes;
  }

 private:
  PageStrides Strides(bool keys) const {
    const int64_t dim = element_, head_row = dim * shape_.head_dim, row = head_row * shape_.kv_heads;
    const int64_t page = row * shape_.page_tokens;
    if (shape_.layout == Shape::kNhd) return {page, row, head_row, dim};
    if (shape_.layout == Shape::kHnd || !keys) return {page, head_row, head_row * shape_.page_tokens, dim};
    return {page, dim, head_row * shape_.page_tokens, dim * shape_.page_tokens};
  }

  const Shape shape_;
  const uint64_t pages_;
  const uint32_t element_;
  size_t part_bytes_ = 0;
  Bytes host_;
  DeviceArray<uint8_t> device_;
};

TEST_P(DeviceRestore, GivesTheBitsOfTheCpuInEveryPage) {
  const Shape shape = GetParam();
  Random random(shape.rank + shape.blocks);
  const std::shared_ptr<const Basis> basis = BasisOf(shape, &random);
  const std::unique_ptr<Codec> codec = Codec::Create(basis->geometry(), basis).value();
  const LatentTables tables = MakeLatentTables();
  const uint32_t groups = basis->groups().size();

  std::vector<uint32_t> tokens = {7, 8, 9, 10};
  while (tokens.size() < (shape.first_block + shape.blocks) * kBlockTokens) tokens.push_back(random.Below(320));
  std::vector<uint64_t> page_ids(tokens.size() / shape.page_tokens + 1);
  for (size_t i = 0; i < page_ids.size(); ++i) page_ids[i] = page_ids.size() - i;  // Page 0 stays poison.
  const std::vector<HeadRange> heads = HeadsOfRank(basis->geometry(), shape.tp_rank, shape.ranks).value();
  const Geometry held = WithHeads(basis->geometry(), heads);
  Shape held_shape = shape;
  held_shape.kv_heads = heads[0].count;
  Pages pages(held_shape, page_ids.size() + 1);

  std::vector<RestoreBlock> blocks;
  std::vector<std::vector<TokenSlot>> slots(shape.blocks);
  std::vector<std::vector<Bytes>> sections(shape.blocks);
  std::vector<float> steps(shape.blocks);
  std::vector<std::vector<bool>> cpu_good(shape.blocks);
  PagedCache cache = pages.cache();
  for (uint32_t b = 0; b < shape.blocks; ++b) {
    const uint32_t first_token = (shape.first_block + b) * kBlockTokens;
    steps[b] = std::ldexp(1.0f, -static_cast<int>(random.Below(3)));
    for (uint32_t g = 0; g < groups; ++g) {
      const LatentSection section = SectionOf(*basis, g, steps[b], first_token == 0, &random);
      sections[b].push_back(WriteLatentSection(basis->groups()[g], tables, steps[b], section).value());
    }
    if (shape.damage > 0 && b % shape.damage == 0) {
      Bytes& damaged = sections[b][random.Below(groups)];
      damaged[random.Below(random.Below(2) == 0 ? 8 : damaged.size())] ^= 1u << random.Below(8);
    }
    FrameHeader header;
    header.geometry = codec->geometry_digest();
    header.first_token = first_token;
    header.token_count = kBlockTokens;
    header.encoding = {basis->digest(), steps[b]};
    const Bytes frame = WriteFrame(header, sections[b]).value();
    header = ParseFrameHeader(frame, frame.size()).value();
    const absl::Span<const uint32_t> chain(tokens.data(), first_token + kBlockTokens);
    std::vector<TokenRun> runs;
    ASSERT_TRUE(RunsOfTokens(page_ids, shape.page_tokens, cache.page_count, first_token, kBlockTokens, &runs).ok());
    for (const TokenRun& run : runs) {
      for (uint32_t i = 0; i < run.count; ++i) slots[b].push_back({static_cast<uint32_t>(run.page), run.offset + i});
    }
    const std::unique_ptr<BlockReader> reader = codec->Open(header, {header.key, first_token, chain}).value();
    for (uint32_t g = 0; g < groups; ++g) {
      const BasisGroup& group = basis->groups()[g];
      Bytes raw(size_t{group.channels} * DTypeBytes(shape.dtype) * kBlockTokens);
      cpu_good[b].push_back(reader->ReadSection(g, sections[b][g], absl::MakeSpan(raw)).ok());
      if (!cpu_good[b].back()) break;
      Bytes part(RawBytes(held, group.first_layer, group.last_layer, kBlockTokens));
      TakeHeads(basis->geometry(), heads, group.first_layer, group.last_layer, kBlockTokens, raw, absl::MakeSpan(part));
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
  const std::unique_ptr<GroupRestorer> restorer = GroupRestorer::Create(device_basis.get(), &rotary, limits).value();
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_TRUE(restorer->Begin(blocks, pages.parts(), stream).ok());
  std::vector<PinnedArray<uint8_t>> payloads;
  for (uint32_t g = 0; g < groups; ++g) {
    std::vector<GroupSection> places;
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < shape.blocks; ++b) {
      const Bytes& section = sections[b][g];
      places.push_back({bytes, static_cast<uint32_t>(section.size()), Crc32c(section), steps[b]});
      bytes += (section.size() + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
    }
    payloads.push_back(PinnedArray<uint8_t>::Make(bytes).value());
    for (uint32_t b = 0; b < shape.blocks; ++b) {
      std::copy(sections[b][g].begin(), sections[b][g].end(), payloads[g].data() + places[b].offset);
    }
    ASSERT_TRUE(restorer->Add(g, payloads[g].data(), bytes, places, stream).ok());
  }
  // One group alone, and the others together.
  ASSERT_TRUE(restorer->Decode(0, 1, stream).ok());
  ASSERT_TRUE(restorer->Restore(0, stream).ok());
  ASSERT_TRUE(restorer->Decode(1, groups, stream).ok());
  for (uint32_t g = 1; g < groups; ++g) ASSERT_TRUE(restorer->Restore(g, stream).ok());
  const PinnedArray<GroupRestorer::Outcome> outcomes = PinnedArray<GroupRestorer::Outcome>::Make(shape.blocks).value();
  ASSERT_TRUE(restorer->Report(outcomes.data(), stream).ok());
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess) << cudaGetErrorString(cudaGetLastError());

  uint32_t refused = 0;
  for (uint32_t b = 0; b < shape.blocks; ++b) {
    const uint32_t good = std::count(cpu_good[b].begin(), cpu_good[b].end(), true);
    EXPECT_EQ(outcomes[b].first_fault, good == groups ? ~0u : good) << "block " << b << " fault " << outcomes[b].fault;
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
  EXPECT_EQ(different, 0u) << "of " << restored.size() << " bytes; the first at " << first;
  // Damaged blocks are restored in part.
  const uint64_t written = restored.size() - std::count(restored.begin(), restored.end(), kPoison);
  EXPECT_GT(written, RawBytes(held, kBlockTokens) * shape.blocks / 2);
  cudaStreamDestroy(stream);
}

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  shapes.push_back({.name = "Smollm"});
  shapes.push_back({.name = "Heads128", .head_dim = 128, .rotary_dim = 128, .rank = 300});
  shapes.push_back({.name = "Heads256Fp16", .dtype = DType::kFp16, .kv_heads = 1, .head_dim = 256, .rotary_dim = 256});
  shapes.push_back({.name = "Heads96Hnd", .head_dim = 96, .rotary_dim = 96, .layout = Shape::kHnd});
  shapes.push_back({.name = "PartlyRotated", .head_dim = 80, .rotary_dim = 32, .page_tokens = 32});
  shapes.push_back({.name = "Neighbours", .rotary_dim = 32, .pairing = RotaryPairing::kNeighbours});
  shapes.push_back({.name = "NotRotated", .rotary_dim = 0, .pairing = RotaryPairing::kNone});
  shapes.push_back({.name = "KeysTransposed", .page_tokens = 128, .layout = Shape::kKeysTransposed});
  shapes.push_back({.name = "Fp8", .dtype = DType::kFp8E4M3});
  shapes.push_back({.name = "Fp32", .dtype = DType::kFp32, .layout = Shape::kHnd});
  shapes.push_back({.name = "NoFeatures", .dims = 0, .history = 0});
  shapes.push_back({.name = "NothingInherited", .inherited_rank = 0});
  shapes.push_back({.name = "FewInherited", .rank = 40, .inherited_rank = 150, .blocks = 3});
  shapes.push_back({.name = "LaterInTheChain", .blocks = 4, .first_block = 5, .page_tokens = 256});
  shapes.push_back({.name = "LargeLatents", .blocks = 12, .scale = 90});
  shapes.push_back({.name = "ManyGroups", .layers = 6, .layers_per_group = 1, .blocks = 1});
  shapes.push_back({.name = "Damaged", .blocks = 200, .damage = 2});
  // What a rank of an engine holds, where its heads fill whole tiles and where they do not.
  const auto add = [&](uint32_t tp_rank, uint32_t ranks, Shape shape) {
    shape.tp_rank = tp_rank, shape.ranks = ranks;
    shapes.push_back(shape);
  };
  add(1, 2, {.name = "LastOfTwoRanks", .kv_heads = 4});
  add(2, 4, {.name = "ThirdOfFourRanks", .kv_heads = 8, .head_dim = 128, .rotary_dim = 128});
  add(3, 4, {.name = "OneHeadOf96", .kv_heads = 4, .head_dim = 96, .rotary_dim = 96, .layout = Shape::kHnd});
  add(1, 2, {.name = "OneHeadOf256", .kv_heads = 2, .head_dim = 256, .rotary_dim = 256});
  add(1, 3, {.name = "OneHeadPartlyRotated", .kv_heads = 3, .head_dim = 80, .rotary_dim = 32, .page_tokens = 32});
  add(1, 2, {.name = "OneHeadOfNeighbours", .rotary_dim = 32, .pairing = RotaryPairing::kNeighbours,
             .layout = Shape::kKeysTransposed});
  add(3, 4, {.name = "HeadThatTwoRanksHold"});
  add(1, 2, {.name = "DamagedForOneOfTwoRanks", .kv_heads = 4, .blocks = 60, .damage = 2});
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeviceRestore, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace latentkv::cuda
