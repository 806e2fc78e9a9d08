// Groups of a basis that the device restores on which the engine works, beside
// those that the CPU does.
#include <atomic>

#include "core/limits.h"
#include "tests/client/device_pages_fixture.h"
#include "tests/client/wrapped_channel.h"

namespace latentkv {
namespace {

class DeviceGroupsTest : public DevicePagesTest {
 protected:
  // A client of `basis` for `pages`, which lie on the device that restores its
  // groups; tokens [0, 256) of sequence 5 are stored, and the pages poisoned.
  // arrived_ counts the sections that come afterwards.
  std::unique_ptr<Client> OpenWithStoredGroups(
      std::shared_ptr<const Basis> basis, TestPages* pages) {
    MoveToDevice(*pages);
    devices_.basis = basis.get();
    ClientConfig config = Config(basis);
    auto wrapped = std::make_shared<WrappedChannel>(daemon_.Connect());
    wrapped->on_section = [this](FetchedSection*, const CallLimits&) {
      ++arrived_;
    };
    config.channel = wrapped;
    std::unique_ptr<Client> client = ClientTest::Open(config, pages);
    const std::vector<uint64_t> ids = pages->PageIds(256, 5);
    pages->Compute(5, ids, 0, 256);
    EXPECT_EQ((*client->Store({TestTokens(5, 256)}, 0, 256, ids))
                  ->Wait(-1, kLong)
                  ->token_count,
              256u);
    pages->Poison();
    return client;
  }
  // Whether all of them come.
  bool AllArrive() const {
    const uint32_t all = 256 / kBlockTokens * geometry_.layers.size();
    for (const absl::Time end = Soon(); arrived_ < all && absl::Now() < end;)
      absl::SleepFor(absl::Milliseconds(1));
    return arrived_ == all;
  }

  std::atomic<uint32_t> arrived_{0};
};

TEST_F(DeviceGroupsTest,
       GroupsOfABasisAreRestoredByTheDeviceAndWhatIsExactBesideThem) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages on_device(geometry_, Layout::kHeadsFirst, 32, 8),
      on_host(geometry_, Layout::kHeadsFirst, 32, 8);
  MoveToDevice(on_device);
  devices_.basis = basis.get();
  const ClientConfig config = Config(basis);
  devices_.encoder = config.codec.get();
  std::unique_ptr<Client> client = ClientTest::Open(config, &on_device);
  std::unique_ptr<Client> other = ClientTest::Open(config, &on_host);
  const std::vector<uint64_t> ids = on_device.PageIds(256, 5);
  on_device.Compute(5, ids, 0, 256);
  // The second block is there exactly too, and taken so.
  ASSERT_EQ((*ClientTest::Open(Config(), &on_device)
                  ->Store({TestTokens(5, 256)}, 0, 128, ids))
                ->Wait(-1, kLong)
                ->token_count,
            128u);
  ASSERT_EQ((*client->Store({TestTokens(5, 256)}, 0, 256, ids))
                ->Wait(-1, kLong)
                ->token_count,
            256u);
  on_device.Poison();
  on_host.Poison();
  const TransferResult loaded = Load(client.get(), on_device, 5, 0, 256);
  EXPECT_EQ(loaded.token_count, 256u) << log();
  EXPECT_EQ(loaded.exact_blocks, 2u);
  EXPECT_EQ(devices_.restored_groups,
            static_cast<int>(geometry_.layers.size()));
  EXPECT_EQ(Load(other.get(), on_host, 5, 0, 256).token_count, 256u);
  EXPECT_TRUE(on_device.memory() == on_host.memory());
  EXPECT_EQ(log(), "");
}

TEST_F(DeviceGroupsTest, WhatTheDeviceDoesNotRestoreIsAMiss) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages pages(geometry_, Layout::kHeadsFirst, 32, 8);
  MoveToDevice(pages);
  devices_.basis = basis.get();
  std::unique_ptr<Client> client = ClientTest::Open(Config(basis), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 6);
  pages.Compute(6, ids, 0, 256);
  ASSERT_EQ((*client->Store({TestTokens(6, 256)}, 0, 256, ids))
                ->Wait(-1, kLong)
                ->token_count,
            256u);
  pages.Poison();
  devices_.on_queue_group = [](uint32_t) {
    return absl::InternalError("the device fell off the bus");
  };
  EXPECT_EQ(Load(client.get(), pages, 6, 0, 256).token_count, 0u);
  EXPECT_THAT(log(), ::testing::HasSubstr("the device fell off the bus"));
  devices_.on_queue_group = nullptr;
  EXPECT_EQ(Load(client.get(), pages, 6, 0, 256).token_count, 256u)
      << "the records are good, and the lane was given back";
}

TEST_F(DeviceGroupsTest, ADamagedSectionEndsWhatTheDeviceRestoresBeforeIt) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages pages(geometry_, Layout::kHeadsFirst, 64, 4);
  MoveToDevice(pages);
  devices_.basis = basis.get();
  ClientConfig config = Config(basis);
  auto wrapped = std::make_shared<WrappedChannel>(daemon_.Connect());
  config.channel = wrapped;
  std::unique_ptr<Client> client = ClientTest::Open(config, &pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 8);
  pages.Compute(8, ids, 0, 256);
  ASSERT_EQ((*client->Store({TestTokens(8, 256)}, 0, 256, ids))
                ->Wait(-1, kLong)
                ->token_count,
            256u);
  pages.Poison();
  Bytes damaged;
  wrapped->on_section = [&](FetchedSection* section, const CallLimits&) {
    if (section->record != 2) return;
    damaged.assign(section->payload.begin(), section->payload.end());
    damaged.back() ^= 1;
    section->payload = damaged;
  };
  EXPECT_EQ(Load(client.get(), pages, 8, 0, 256).token_count, 128u);
  EXPECT_THAT(log(), ::testing::HasSubstr("checksum"));
}

TEST_F(DeviceGroupsTest, ABlockThatTheDeviceLeavesToTheCpuIsRestoredThere) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages on_device(geometry_, Layout::kHeadsFirst, 32, 8),
      on_host(geometry_, Layout::kHeadsFirst, 32, 8);
  MoveToDevice(on_device);
  devices_.basis = basis.get();
  devices_.on_restore_block = [](uint32_t group, size_t block) {
    return group == 1 && block == 2
               ? absl::ResourceExhaustedError("too many large latents")
               : absl::OkStatus();
  };
  const ClientConfig config = Config(basis);
  devices_.encoder = config.codec.get();
  std::unique_ptr<Client> client = ClientTest::Open(config, &on_device);
  std::unique_ptr<Client> other = ClientTest::Open(config, &on_host);
  const std::vector<uint64_t> ids = on_device.PageIds(256, 5);
  on_device.Compute(5, ids, 0, 256);
  ASSERT_EQ((*client->Store({TestTokens(5, 256)}, 0, 256, ids))
                ->Wait(-1, kLong)
                ->token_count,
            256u);
  on_device.Poison();
  on_host.Poison();
  EXPECT_EQ(Load(client.get(), on_device, 5, 0, 256).token_count, 256u)
      << log();
  EXPECT_EQ(Load(other.get(), on_host, 5, 0, 256).token_count, 256u);
  EXPECT_TRUE(on_device.memory() == on_host.memory());
  EXPECT_EQ(log(), "");
}

TEST_F(DeviceGroupsTest,
       LaterGroupsArriveWhileTheDeviceRestoresAndEachCountsOnceItIsOver) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages pages(geometry_, Layout::kHeadsFirst, 32, 8);
  Gate gates[2];
  devices_.on_restore_block = [&](uint32_t group, size_t) {
    if (group < 2) gates[group].Wait(nullptr);
    return absl::OkStatus();
  };
  std::unique_ptr<Client> client = OpenWithStoredGroups(basis, &pages);
  auto job =
      client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5), Soon());
  gates[0].AwaitVisitor();
  EXPECT_TRUE(AllArrive());
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(0, absl::Milliseconds(30)).status()));
  gates[0].Open();
  EXPECT_EQ((*job)->Wait(0, kLong)->token_count, 256u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(1, absl::Milliseconds(30)).status()));
  gates[1].Open();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 256u);
  EXPECT_EQ(devices_.restored_groups,
            static_cast<int>(geometry_.layers.size()));
  EXPECT_THAT(log(), ::testing::Not(::testing::HasSubstr("[warning]")));
}

TEST_F(DeviceGroupsTest,
       WhatBecameOfABlockCountsAlsoWhenItsLaterGroupsAreQueued) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages pages(geometry_, Layout::kHeadsFirst, 32, 8),
      expected(geometry_, Layout::kHeadsFirst, 32, 8);
  std::unique_ptr<Client> client = OpenWithStoredGroups(basis, &pages);
  ASSERT_EQ(Load(ClientTest::Open(Config(basis), &expected).get(), expected, 5,
                 0, 256)
                .token_count,
            256u);
  for (bool damaged : {false, true}) {
    Gate gate;
    devices_.on_restore_block = [&](uint32_t group,
                                    size_t block) -> absl::Status {
      gate.Wait(nullptr);
      if (group != 0 || block != 2) return absl::OkStatus();
      return damaged ? absl::DataLossError("damaged")
                     : absl::ResourceExhaustedError("left to the CPU");
    };
    pages.Poison();
    arrived_ = 0;
    auto job = client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5),
                            Soon());
    gate.AwaitVisitor();
    EXPECT_TRUE(AllArrive());
    gate.Open();
    EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, damaged ? 128u : 256u)
        << log();
    if (!damaged) {
      EXPECT_TRUE(pages.memory() == expected.memory());
    }
  }
}

TEST_F(DeviceGroupsTest, AJobIsGoneOnceTheGroupsThatWereQueuedAreOver) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages pages(geometry_, Layout::kHeadsFirst, 32, 8);
  Gate gate;
  devices_.on_restore_block = [&](uint32_t, size_t) {
    return gate.Wait(nullptr), absl::OkStatus();
  };
  std::unique_ptr<Client> client = OpenWithStoredGroups(basis, &pages);
  auto job =
      client->Load({TestTokens(5, 256)}, 0, 256, pages.PageIds(256, 5), Soon());
  gate.AwaitVisitor();
  ExpectGoneAfter(&gate, pages, *std::move(job));
}

TEST_F(DeviceGroupsTest, ALoadOfManyBlocksIsRestoredInSeveralRuns) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  constexpr uint64_t kTokens = (kGroupBlocksMax + 3) * kBlockTokens,
                     kPages = kTokens / 64;
  TestPages on_device(geometry_, Layout::kTokensFirst, 64, kPages),
      on_host(geometry_, Layout::kTokensFirst, 64, kPages);
  MoveToDevice(on_device);
  devices_.basis = basis.get();
  ClientConfig config = Config(basis);
  config.staging_bytes_max = uint64_t{1} << 30;
  std::unique_ptr<Client> client = ClientTest::Open(config, &on_device);
  std::unique_ptr<Client> other = ClientTest::Open(config, &on_host);
  const std::vector<uint64_t> ids = on_device.PageIds(kTokens, 5);
  on_device.Compute(5, ids, 0, kTokens);
  ASSERT_EQ((*client->Store({TestTokens(5, kTokens)}, 0, kTokens, ids))
                ->Wait(-1, kLong)
                ->token_count,
            kTokens);
  on_device.Poison();
  on_host.Poison();
  EXPECT_EQ(Load(client.get(), on_device, 5, 0, kTokens).token_count, kTokens)
      << log();
  EXPECT_EQ(devices_.restored_groups,
            static_cast<int>(2 * geometry_.layers.size()));
  EXPECT_EQ(Load(other.get(), on_host, 5, 0, kTokens).token_count, kTokens);
  EXPECT_TRUE(on_device.memory() == on_host.memory());
}

}  // namespace
}  // namespace latentkv
