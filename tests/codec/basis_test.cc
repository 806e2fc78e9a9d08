#include "codec/basis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "core/checksum.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

const Basis& Synthetic() {
  static const std::shared_ptr<const Basis> basis =
      *Basis::Create(SyntheticParts());
  return *basis;
}

// `bytes` with the checksum at its end right again.
Bytes Sealed(Bytes bytes) {
  if (bytes.size() < 4) return bytes;
  const uint32_t crc = Crc32c(ByteSpan(bytes).first(bytes.size() - 4));
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, sizeof(crc));
  return bytes;
}

TEST(Basis, IsReadBack) {
  const auto basis = Basis::Parse(Synthetic().serialized());
  ASSERT_TRUE(basis.ok()) << basis.status();
  const BasisParts parts = SyntheticParts();
  EXPECT_EQ((*basis)->serialized(), Synthetic().serialized());
  EXPECT_EQ((*basis)->digest(), Sha256({Synthetic().serialized()}));
  EXPECT_EQ((*basis)->geometry(), parts.geometry);
  EXPECT_EQ((*basis)->description(), "a synthetic model");
  EXPECT_EQ((*basis)->inherited_rank(), 4u);
  EXPECT_EQ((*basis)->embedding().vocabulary, 100u);
  EXPECT_EQ((*basis)->embedding().dims, 8u);
  EXPECT_EQ((*basis)->embedding().history, 2u);
  EXPECT_EQ((*basis)->embedding().rows, parts.embedding.rows);
  ASSERT_EQ((*basis)->sinks().size(), 1u);
  EXPECT_EQ((*basis)->sinks()[0].tokens, parts.sinks[0].tokens);
  EXPECT_EQ((*basis)->sinks()[0].values, parts.sinks[0].values);
  ASSERT_EQ((*basis)->groups().size(), 2u);
  for (int g = 0; g < 2; ++g) {
    const BasisGroup &read = (*basis)->groups()[g], &written = parts.groups[g];
    EXPECT_EQ(
        std::tie(read.first_layer, read.last_layer, read.channels, read.rank),
        std::tie(written.first_layer, written.last_layer, written.channels,
                 written.rank));
    EXPECT_EQ(
        std::tie(read.mean, read.feature_scale, read.row_scale, read.weight,
                 read.sensitivity, read.latent_scale),
        std::tie(written.mean, written.feature_scale, written.row_scale,
                 written.weight, written.sensitivity, written.latent_scale));
    EXPECT_EQ(std::tie(read.decoder, read.feature_rows),
              std::tie(written.decoder, written.feature_rows));
  }
}

TEST(Basis, WithoutEmbeddingInheritanceSinksAndProfilesIsReadBack) {
  BasisParts parts = SyntheticParts({DType::kBf16, false, 0});
  parts.sinks.clear();
  parts.profiles.clear();
  const auto created = Basis::Create(parts);
  ASSERT_TRUE(created.ok()) << created.status();
  const auto parsed = Basis::Parse((*created)->serialized());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ((*parsed)->digest(), (*created)->digest());
}

TEST(Basis, ProfilesAreFoundByName) {
  const auto profile = Synthetic().FindProfile("balanced");
  ASSERT_TRUE(profile.ok());
  EXPECT_EQ(profile->step, 1);
  EXPECT_EQ(profile->loss_own_max, 0.04f);
  const absl::Status status = Synthetic().FindProfile("tiny").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("exact, high, balanced, small"));
}

TEST(Basis, IsLoadedFromAFile) {
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / "synthetic.basis";
  std::ofstream(path, std::ios::binary) << AsText(Synthetic().serialized());
  const auto basis = Basis::Load(path);
  ASSERT_TRUE(basis.ok()) << basis.status();
  EXPECT_EQ((*basis)->digest(), Synthetic().digest());
  std::filesystem::resize_file(path, 1000);
  EXPECT_EQ(Basis::Load(path).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(Basis::Load(path).status().message()),
              testing::HasSubstr(path.string()));
  std::filesystem::remove(path);
  EXPECT_EQ(Basis::Load(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Basis::Load(testing::TempDir()).ok());
}

TEST(Basis, EveryTruncationIsRefused) {
  const Bytes& whole = Synthetic().serialized();
  for (size_t size = 0; size < whole.size(); ++size) {
    const Bytes cut(whole.begin(), whole.begin() + size);
    ASSERT_EQ(Basis::Parse(cut).status().code(), absl::StatusCode::kDataLoss)
        << size;
  }
}

// A reader that checks the length before the checksum would refuse these for
// the wrong reason.
TEST(Basis, TruncationsAndExtensionsBehindAGoodChecksumAreRefused) {
  const Bytes& whole = Synthetic().serialized();
  for (size_t size = 12; size < whole.size(); size += 1 + size / 300) {
    Bytes cut(whole.begin(), whole.begin() + size);
    ASSERT_EQ(Basis::Parse(Sealed(cut)).status().code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
  for (size_t more = 1; more < 50; ++more) {
    Bytes longer = whole;
    longer.resize(whole.size() + more);
    ASSERT_EQ(Basis::Parse(Sealed(longer)).status().code(),
              absl::StatusCode::kDataLoss)
        << more;
  }
}

TEST(Basis, DamageIsRefused) {
  Random random(1);
  for (int round = 0; round < 500; ++round) {
    Bytes damaged = Synthetic().serialized();
    damaged[random.Below(damaged.size())] ^= 1 << random.Below(8);
    const absl::StatusCode code = Basis::Parse(damaged).status().code();
    // Flips of the version are of an unknown one.
    ASSERT_TRUE(code == absl::StatusCode::kDataLoss ||
                code == absl::StatusCode::kUnimplemented);
  }
}

TEST(Basis, AnUnknownVersionIsNamed) {
  Bytes newer = Synthetic().serialized();
  newer[4] = 9;
  EXPECT_EQ(Basis::Parse(newer).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Basis::Parse(newer).status().message()),
              testing::HasSubstr("version 9"));
}

TEST(Basis, ForgedBytesBehindAGoodChecksumAreRefusedOrReadBackAsTheyAre) {
  Random random(2);
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    Bytes forged = Synthetic().serialized();
    // Half of the changes where lengths and counts lie.
    const uint32_t within = round % 2 == 0 ? 700 : forged.size() - 4;
    for (uint32_t changes = 1 + random.Below(4); changes > 0; --changes) {
      const uint32_t at = random.Below(within);
      const uint8_t edges[] = {0,    1,    0x7f,
                               0x80, 0xff, static_cast<uint8_t>(random.Bits())};
      forged[at] = edges[random.Below(6)];
    }
    forged = Sealed(forged);
    const auto basis = Basis::Parse(forged);
    if (basis.ok()) {
      ASSERT_EQ((*basis)->serialized(), forged);
    } else {
      ++refused;
      ASSERT_TRUE(basis.status().code() == absl::StatusCode::kDataLoss ||
                  basis.status().code() == absl::StatusCode::kUnimplemented)
          << basis.status();
    }
  }
  EXPECT_GT(refused, 500);
}

struct Fault {
  const char* named;  // In the error's text.
  std::function<void(BasisParts*)> make;
};

TEST(BasisCreate, NamesTheBoundThatIsBroken) {
  const float infinity = std::numeric_limits<float>::infinity();
  const Fault faults[] = {
      {"layers", [](BasisParts* p) { p->geometry.layers.clear(); }},
      {"a description of 4097 bytes",
       [](BasisParts* p) { p->description.assign(4097, 'x'); }},
      {"17 profiles", [](BasisParts* p) { p->profiles.resize(17); }},
      {"cannot be named \"\"",
       [](BasisParts* p) { p->profiles[0].name.clear(); }},
      {"cannot be named \"exact\"",
       [](BasisParts* p) { p->profiles[0].name = "exact"; }},
      {"cannot be named \"small\"",
       [](BasisParts* p) { p->profiles[0].name = "small"; }},
      {"cannot be named",
       [](BasisParts* p) { p->profiles[0].name.assign(33, 'x'); }},
      {"step 0", [](BasisParts* p) { p->profiles[0].step = 0; }},
      {"step inf", [=](BasisParts* p) { p->profiles[0].step = infinity; }},
      {"loss_own_max -1",
       [](BasisParts* p) { p->profiles[0].loss_own_max = -1; }},
      {"an embedding of 1048577 rows",
       [](BasisParts* p) { p->embedding.vocabulary = (1 << 20) + 1; }},
      {"513 dims", [](BasisParts* p) { p->embedding.dims = 513; }},
      {"9 tokens", [](BasisParts* p) { p->embedding.history = 9; }},
      {"an embedding of 0 rows",
       [](BasisParts* p) { p->embedding.vocabulary = 0; }},
      {"0 dims", [](BasisParts* p) { p->embedding.dims = 0; }},
      {"4294967295 dims",
       [](BasisParts* p) { p->embedding.dims = 0xffffffff; }},
      {"the embedding has 799 values",
       [](BasisParts* p) { p->embedding.rows.pop_back(); }},
      {"the embedding holds -128",
       [](BasisParts* p) { p->embedding.rows[5] = -128; }},
      {"inherited_rank 1025", [](BasisParts* p) { p->inherited_rank = 1025; }},
      {"65 known sinks",
       [](BasisParts* p) { p->sinks.resize(65, p->sinks[0]); }},
      {"known sinks of", [](BasisParts* p) { p->sinks[0].values.pop_back(); }},
      {"covers 2 of 4 layers", [](BasisParts* p) { p->groups.pop_back(); }},
      {"covers 0 of 4 layers", [](BasisParts* p) { p->groups.clear(); }},
      {"group 1 of the basis: layers [3, 4) where layer 2",
       [](BasisParts* p) { p->groups[1].first_layer = 3; }},
      {"layers [2, 2)", [](BasisParts* p) { p->groups[1].last_layer = 2; }},
      {"layers [2, 5)", [](BasisParts* p) { p->groups[1].last_layer = 5; }},
      {"127 channels", [](BasisParts* p) { p->groups[0].channels = 127; }},
      {"rank 0", [](BasisParts* p) { p->groups[0].rank = 0; }},
      {"rank 129", [](BasisParts* p) { p->groups[0].rank = 129; }},
      {"mean has 127 values, not 128",
       [](BasisParts* p) { p->groups[0].mean.pop_back(); }},
      {"mean holds inf",
       [=](BasisParts* p) { p->groups[0].mean[3] = infinity; }},
      {"feature_scale has 0 values",
       [](BasisParts* p) { p->groups[0].feature_scale.clear(); }},
      {"feature_scale holds -1",
       [](BasisParts* p) { p->groups[0].feature_scale[3] = -1; }},
      {"row_scale holds -1",
       [](BasisParts* p) { p->groups[0].row_scale[3] = -1; }},
      {"weight holds nan",
       [](BasisParts* p) {
         p->groups[0].weight[3] = std::numeric_limits<float>::quiet_NaN();
       }},
      {"sensitivity holds -1",
       [](BasisParts* p) { p->groups[0].sensitivity[3] = -1; }},
      {"latent_scale has 25 values",
       [](BasisParts* p) { p->groups[0].latent_scale.push_back(0); }},
      {"latent_scale does not descend",
       [](BasisParts* p) { p->groups[0].latent_scale[3] = 100; }},
      {"decoder has",
       [](BasisParts* p) { p->groups[1].decoder.resize(24 * 128); }},
      {"decoder holds -128",
       [](BasisParts* p) { p->groups[1].decoder.back() = -128; }},
      {"feature_rows has",
       [](BasisParts* p) { p->groups[1].feature_rows.pop_back(); }},
      {"feature_rows holds -128",
       [](BasisParts* p) { p->groups[1].feature_rows[0] = -128; }},
  };
  for (const Fault& fault : faults) {
    BasisParts parts = SyntheticParts();
    fault.make(&parts);
    const absl::Status status = Basis::Create(parts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.named;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(fault.named));
  }
}

// So many latents of the largest magnitude that their sum times a decoder's 127
// could leave 32 bits.
TEST(BasisCreate, RefusesMoreInheritedLatentsThanTheProductHolds) {
  BasisParts parts;
  parts.geometry = SyntheticGeometry();
  parts.geometry.layers.resize(1);
  parts.geometry.layers.resize(66, parts.geometry.layers[0]);
  parts.inherited_rank = 1024;
  for (uint32_t g = 0; g < 66; ++g) {
    BasisGroup& group = parts.groups.emplace_back();
    group.first_layer = g;
    group.last_layer = g + 1;
    group.channels = 64;
    group.rank = 1;
    for (auto* values :
         {&group.mean, &group.row_scale, &group.weight, &group.sensitivity})
      values->resize(64);
    group.latent_scale.resize(1);
    group.decoder.resize((1 + size_t{g} * 1024) * 64);
  }
  const absl::Status status = Basis::Create(parts).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      testing::HasSubstr("group 64 of the basis: rank 1 and inherits 65536"));
}

}  // namespace
}  // namespace latentkv
