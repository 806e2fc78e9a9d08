#include "core/geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/limits.h"

namespace latentkv {
namespace {

Geometry Example() {
  LayerGeometry layer;
  layer.kv_heads = 2;
  layer.head_dim = 4;
  layer.rotary_dim = 4;
  layer.pairing = RotaryPairing::kHalves;
  layer.inverse_frequencies = {1.0, 0.01};
  Geometry geometry;
  geometry.layers = {layer, layer};
  geometry.layers[1].dtype = DType::kFp32;
  geometry.layers[1].window = 128;
  return geometry;
}

TEST(Geometry, IsReadBack) {
  const Geometry geometry = Example();
  EXPECT_EQ(*ParseGeometry(geometry.Serialize()), geometry);
  EXPECT_EQ(geometry.BytesPerToken(), 2u * 8 * 2 + 2 * 8 * 4);
}

TEST(Geometry, HasTheDigestOfTheDocument) {
  EXPECT_EQ(Example().ComputeDigest().Hex(),
            "60c69527790b75a3469feff684852bca06fa9951a99afaedb97ed6a572daa1cd");
}

TEST(Geometry, ValuesMayHaveOtherDimensionsThanKeys) {
  Geometry geometry = Example();
  geometry.layers[1].value_dim = 32;
  EXPECT_EQ(*ParseGeometry(geometry.Serialize()), geometry);
  EXPECT_EQ(geometry.BytesPerToken(), 2u * 8 * 2 + (8 + 64) * 4);
  EXPECT_EQ(geometry.ComputeDigest().Hex(),
            "cf5a63449deb2863c0bfbdfed8b7de646f3a6416b27e0ad58b7c1fde881ba651");
}

TEST(Geometry, EveryFieldChangesTheDigest) {
  const Digest digest = Example().ComputeDigest();
  const auto changed = [&](auto change) {
    Geometry geometry = Example();
    change(geometry.layers[1]);
    return geometry.ComputeDigest() != digest;
  };
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.kv_heads = 3; }));
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.head_dim = 8; }));
  EXPECT_TRUE(changed(
      [](LayerGeometry& l) { l.pairing = RotaryPairing::kNeighbours; }));
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.rotary_scale = 1.5f; }));
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.window = 0; }));
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.value_dim = 16; }));
  EXPECT_TRUE(changed([](LayerGeometry& l) { l.dtype = DType::kBf16; }));
  EXPECT_TRUE(
      changed([](LayerGeometry& l) { l.inverse_frequencies[1] = 0.02; }));
}

TEST(Geometry, NamesTheLayerAndFieldOutOfBounds) {
  const auto fault = [](auto change) {
    Geometry geometry = Example();
    change(geometry.layers[1]);
    return std::string(geometry.Validate().message());
  };
  using testing::HasSubstr;
  EXPECT_THAT(fault([](LayerGeometry& l) { l.kv_heads = 0; }),
              HasSubstr("layer 1: kv_heads 0"));
  EXPECT_THAT(fault([](LayerGeometry& l) { l.head_dim = 1u << 20; }),
              HasSubstr("head_dim"));
  EXPECT_THAT(fault([](LayerGeometry& l) { l.rotary_dim = 3; }),
              HasSubstr("rotary_dim 3"));
  EXPECT_THAT(fault([](LayerGeometry& l) { l.pairing = RotaryPairing::kNone; }),
              HasSubstr("rotary_dim"));
  // Another name for what is there; a row of half a byte; too wide.
  for (const uint32_t dim : {4u, 7u, 1026u}) {
    EXPECT_THAT(fault([&](LayerGeometry& l) { l.value_dim = dim; }),
                HasSubstr("value_dim"));
  }
  EXPECT_THAT(fault([](LayerGeometry& l) { l.rotary_scale = NAN; }),
              HasSubstr("rotary_scale"));
  EXPECT_THAT(fault([](LayerGeometry& l) { l.dtype = static_cast<DType>(9); }),
              HasSubstr("dtype 9"));
  EXPECT_THAT(fault([](LayerGeometry& l) { l.inverse_frequencies.pop_back(); }),
              HasSubstr("inverse_frequencies"));
  EXPECT_THAT(
      fault([](LayerGeometry& l) { l.inverse_frequencies[0] = INFINITY; }),
      HasSubstr("not finite"));
  EXPECT_FALSE(Geometry{}.Validate().ok());
}

TEST(Geometry, RefusesEveryTruncationAndTrailingBytes) {
  Bytes bytes = Example().Serialize();
  for (size_t count = 0; count < bytes.size(); ++count) {
    EXPECT_FALSE(ParseGeometry(ByteSpan(bytes).first(count)).ok()) << count;
  }
  bytes.push_back(0);
  EXPECT_FALSE(ParseGeometry(bytes).ok());
}

TEST(Geometry, DoesNotBelieveACount) {
  Bytes bytes;
  ByteWriter writer(&bytes);
  writer.Put<uint32_t>(0x474b764c);
  writer.Put<uint32_t>(0xffffffff);
  bytes.resize(24 * (kLayersMax + 10) + 8, 0);
  EXPECT_FALSE(ParseGeometry(bytes).ok());
}

}  // namespace
}  // namespace latentkv
