// Pages on a device: what is loaded and stored, in which order, and what
// becomes of its failures. The device is one of host memory and threads;
// tests/kernels has the real one's copies.
#include <atomic>
#include <sstream>

#include "core/limits.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/fake_device.h"
#include "tests/client/wrapped_channel.h"

namespace latentkv {
namespace {

class DevicePagesTest : public ClientTest {
 protected:
  // All memory of `pages` lies on the device.
  void MoveToDevice(const TestPages& pages, uint32_t device = 0) {
    for (const Bytes& layer : pages.memory())
      devices_.Hold(layer.data(), layer.size(), device);
  }
  ClientConfig Config(std::shared_ptr<const Basis> basis = nullptr) {
    ClientConfig config =
        TestConfig(daemon_.Connect(), geometry_, std::move(basis));
    config.devices = &devices_;
    config.logger = std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
    return config;
  }
  // A job is not gone before what waits in `gate` is over, and then writes no
  // page any more; returns what they have.
  static std::vector<Bytes> ExpectGoneAfter(Gate* gate, const TestPages& pages,
                                            std::unique_ptr<Job> job) {
    std::atomic<bool> gone{false};
    std::thread free([&] {
      job.reset();
      gone = true;
    });
    absl::SleepFor(absl::Milliseconds(30));
    EXPECT_FALSE(gone) << "something was still under way";
    gate->Open();
    free.join();
    const std::vector<Bytes> after = pages.memory();
    absl::SleepFor(absl::Milliseconds(30));
    EXPECT_TRUE(pages.memory() == after);
    return after;
  }
  std::string log() const { return log_.str(); }
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
  FakeDevices devices_;  // Outlives the clients.
  std::ostringstream log_;
};

TEST_F(DevicePagesTest, EveryLayoutIsStoredFromAndLoadedIntoWithTheHostsBits) {
  uint64_t seed = 40;
  for (Layout layout : kLayouts) {
    for (uint32_t page_tokens : {16, 128}) {
      TestPages pages(geometry_, layout, page_tokens, 20);
      MoveToDevice(pages);
      std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
      ++seed;
      const std::vector<uint64_t> ids = pages.PageIds(256, seed);
      pages.Compute(seed, ids, 0, 256, Values::kAnyBits);
      auto stored = client->Store({TestTokens(seed, 256)}, 0, 256, ids);
      ASSERT_EQ((*stored)->Wait(-1, kLong)->token_count, 256u) << log();
      pages.Poison();
      EXPECT_EQ(Load(client.get(), pages, seed, 0, 256).token_count, 256u)
          << log();
      TestPages expected(geometry_, layout, page_tokens, 20);
      expected.Compute(seed, ids, 0, 256, Values::kAnyBits);
      EXPECT_TRUE(pages.memory() == expected.memory())
          << static_cast<int>(layout) << " " << page_tokens;
    }
  }
  EXPECT_EQ(log(), "");
}

TEST_F(DevicePagesTest, EveryEncodingRestoresWhatItRestoresOnTheHost) {
  const auto basis = PlainBasis(geometry_);
  ClientConfig uncalibrated = Config();
  uncalibrated.write = {false, 0.42f, 0, 0};
  uncalibrated.read = {{ScalarQuantizer()}, 1e9};
  uint64_t seed = 60;
  TestPages on_device(geometry_, Layout::kHeadsFirst, 32, 8),
      on_host(geometry_, Layout::kHeadsFirst, 32, 8);
  MoveToDevice(on_device);
  for (const ClientConfig& config : {Config(basis), uncalibrated}) {
    on_host.Poison();
    std::unique_ptr<Client> client = ClientTest::Open(config, &on_device);
    std::unique_ptr<Client> other = ClientTest::Open(config, &on_host);
    const std::vector<uint64_t> ids = on_device.PageIds(256, ++seed);
    on_device.Compute(seed, ids, 0, 256);
    ASSERT_EQ((*client->Store({TestTokens(seed, 256)}, 0, 256, ids))
                  ->Wait(-1, kLong)
                  ->token_count,
              256u);
    on_device.Poison();
    const TransferResult loaded = Load(client.get(), on_device, seed, 0, 256);
    EXPECT_EQ(loaded.token_count, 256u);
    EXPECT_EQ(loaded.exact_blocks, 0u);
    EXPECT_EQ(Load(other.get(), on_host, seed, 0, 256).token_count, 256u);
    EXPECT_TRUE(on_device.memory() == on_host.memory());
  }
}

TEST_F(DevicePagesTest,
       GroupsOfABasisAreRestoredByTheDeviceAndWhatIsExactBesideThem) {
  const auto basis = PlainBasis(geometry_, 0, 0.0625, 1);
  TestPages on_device(geometry_, Layout::kHeadsFirst, 32, 8),
      on_host(geometry_, Layout::kHeadsFirst, 32, 8);
  MoveToDevice(on_device);
  devices_.basis = basis.get();
  std::unique_ptr<Client> client = ClientTest::Open(Config(basis), &on_device);
  std::unique_ptr<Client> other = ClientTest::Open(Config(basis), &on_host);
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

TEST_F(DevicePagesTest, WhatTheDeviceDoesNotRestoreIsAMiss) {
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

TEST_F(DevicePagesTest, ADamagedSectionEndsWhatTheDeviceRestoresBeforeIt) {
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

TEST_F(DevicePagesTest, ABlockThatTheDeviceLeavesToTheCpuIsRestoredThere) {
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
  std::unique_ptr<Client> client = ClientTest::Open(Config(basis), &on_device);
  std::unique_ptr<Client> other = ClientTest::Open(Config(basis), &on_host);
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

TEST_F(DevicePagesTest,
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
  EXPECT_EQ(log(), "");
}

TEST_F(DevicePagesTest,
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

TEST_F(DevicePagesTest, AJobIsGoneOnceTheGroupsThatWereQueuedAreOver) {
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

TEST_F(DevicePagesTest, ALoadOfManyBlocksIsRestoredInSeveralRuns) {
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

TEST_F(DevicePagesTest, LayerCountsAsLoadedOnceItsCopyIsOver) {
  ASSERT_TRUE(StoreSequence(7, 128));
  Gate gate;
  devices_.on_scatter = [&] { return gate.Wait(nullptr), absl::OkStatus(); };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 2);
  MoveToDevice(pages);
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  auto job =
      client->Load({TestTokens(7, 128)}, 0, 128, pages.PageIds(128, 7), Soon());
  gate.AwaitVisitor();
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(0, absl::Milliseconds(30)).status()));
  gate.Open();
  EXPECT_EQ((*job)->Wait(0, kLong)->token_count, 128u);
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
  EXPECT_TRUE(pages.memory() ==
              Expected(Layout::kTokensFirst, 64, 2, 7, 0, 128).memory());
}

TEST_F(DevicePagesTest, NoPageIsWrittenOnceAJobIsGone) {
  ASSERT_TRUE(StoreSequence(7, 256));
  Gate gate;
  devices_.on_scatter = [&] { return gate.Wait(nullptr), absl::OkStatus(); };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  auto job =
      client->Load({TestTokens(7, 256)}, 0, 256, pages.PageIds(256, 7), Soon());
  gate.AwaitVisitor();
  const std::vector<Bytes> after =
      ExpectGoneAfter(&gate, pages, *std::move(job));
  EXPECT_FALSE(after ==
               Expected(Layout::kTokensFirst, 64, 4, 7, 0, 256).memory())
      << "what was not begun is not done";
}

TEST_F(DevicePagesTest,
       StoreTakesWhatTheStreamWillHaveWrittenAndTheStreamWaitsForIt) {
  Gate computing, reading;
  devices_.on_gather = [&] { return reading.Wait(nullptr), absl::OkStatus(); };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 3);
  std::atomic<bool> overwritten{false};
  FakeQueue stream;
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  stream.Add([&] {
    computing.Wait(nullptr);
    pages.Compute(3, ids, 0, 256);
    return absl::OkStatus();
  });
  // Neither the forward pass nor the copy is over, and it returns.
  auto job = client->Store({TestTokens(3, 256)}, 0, 256, ids, &stream);
  ASSERT_TRUE(job.ok());
  stream.Add([&] {
    overwritten = true;
    pages.Poison();
    return absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(-1, absl::Milliseconds(30)).status()));
  computing.Open();
  reading.AwaitVisitor();
  EXPECT_FALSE(overwritten);
  reading.Open();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 256u);
  EXPECT_TRUE(stream.Record()->Wait().ok());
  EXPECT_TRUE(overwritten);
  EXPECT_EQ(Load(client.get(), pages, 3, 0, 256).token_count, 256u);
  EXPECT_TRUE(pages.memory() ==
              Expected(Layout::kTokensFirst, 64, 4, 3, 0, 256).memory());
}

TEST_F(DevicePagesTest, LoadWritesBehindWhatTheStreamHad) {
  ASSERT_TRUE(StoreSequence(7, 128));
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 2);
  MoveToDevice(pages);
  Gate reading;
  FakeQueue stream;
  std::vector<Bytes> read;
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  const std::vector<Bytes> before = pages.memory();
  stream.Add([&] {
    reading.Wait(nullptr);
    read = pages.memory();
    return absl::OkStatus();
  });
  auto job = client->Load({TestTokens(7, 128)}, 0, 128, pages.PageIds(128, 7),
                          Soon(), &stream);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      (*job)->Wait(0, absl::Milliseconds(50)).status()));
  reading.Open();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
  EXPECT_TRUE(read == before) << "the engine still read what it had";
}

TEST_F(DevicePagesTest, FailureOfTheDeviceIsAMissWithALogLine) {
  ASSERT_TRUE(StoreSequence(7, 128));
  std::atomic<int> copies{0};
  devices_.on_scatter = [&] {
    return ++copies > 3 ? absl::InternalError("the device fell off")
                        : absl::OkStatus();
  };
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 2);
  MoveToDevice(pages);
  ClientConfig config = Config();
  config.thread_count = 1;
  std::unique_ptr<Client> client = ClientTest::Open(std::move(config), &pages);
  EXPECT_LT(Load(client.get(), pages, 7, 0, 128).token_count, 128u);
  EXPECT_THAT(log(), testing::HasSubstr("the device fell off"));
  devices_.on_scatter = nullptr;
  TestPages again(geometry_, Layout::kTokensFirst, 64, 2);
  EXPECT_EQ(Load(Open(&again).get(), again, 7, 0, 128).token_count, 128u)
      << "a sound record is not forgotten for it";
}

TEST_F(DevicePagesTest, WhatCannotBeReadIsNotStored) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  std::atomic<bool> broken{true};
  devices_.on_queue_gather = [&] {
    return broken ? absl::InternalError("no launch") : absl::OkStatus();
  };
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  const std::vector<uint64_t> ids = pages.PageIds(256, 3);
  auto job = client->Store({TestTokens(3, 256)}, 0, 256, ids);
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 0u);
  EXPECT_EQ(client->Stats().dropped_blocks, 4u);
  EXPECT_THAT(log(), testing::HasSubstr("no launch"));
  EXPECT_EQ(Match(client.get(), 3, 256), 0u);
}

TEST_F(DevicePagesTest, CopyThatFailsLaterIsNotStoredEither) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  devices_.on_gather = [] { return absl::InternalError("an illegal address"); };
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  auto job = client->Store({TestTokens(3, 256)}, 0, 256, pages.PageIds(256, 3));
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 0u);
  const ClientStats stats = client->Stats();
  EXPECT_GE(stats.store_failures, 1u);
  EXPECT_EQ(stats.store_failures + stats.dropped_blocks, 4u)
      << "those behind it are unreachable";
  EXPECT_THAT(log(), testing::HasSubstr("an illegal address"));
  EXPECT_EQ(Match(client.get(), 3, 256), 0u);
}

TEST_F(DevicePagesTest, WhatTheStagingMemoryCannotHoldIsDropped) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  ClientConfig config = Config();
  config.staging_bytes_max = 2 * RawBytes(geometry_, kBlockTokens);
  Gate gate;
  devices_.on_gather = [&] { return gate.Wait(nullptr), absl::OkStatus(); };
  std::unique_ptr<Client> client = ClientTest::Open(std::move(config), &pages);
  pages.Compute(3, pages.PageIds(256, 3), 0, 256);
  auto job = client->Store({TestTokens(3, 256)}, 0, 256, pages.PageIds(256, 3));
  gate.Open();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
  EXPECT_EQ(client->Stats().dropped_blocks, 2u);
}

TEST_F(DevicePagesTest, PagesInSeveralMemoriesAreRefused) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4),
      others(geometry_, Layout::kTokensFirst, 64, 4);
  devices_.Hold(pages.memory()[0].data(), pages.memory()[0].size());
  std::unique_ptr<Client> client = *MakeClient(Config());
  absl::Status status = client->RegisterPages(pages.cache());
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(
      std::string(status.message()),
      testing::HasSubstr("layer 1 lie in host memory, those of layer 0 on"));
  MoveToDevice(others, 1);
  PagedCache mixed = others.cache();
  mixed.layers[0] = pages.cache().layers[0];
  EXPECT_TRUE(absl::IsInvalidArgument(client->RegisterPages(mixed)));
  EXPECT_TRUE(client->RegisterPages(others.cache()).ok());
}

TEST_F(DevicePagesTest,
       PagesAreRegisteredAnewWhileOldOnesAreLoadedAndKeepTheirStagingMemory) {
  ASSERT_TRUE(StoreSequence(7, 128));
  Gate gate;
  devices_.on_scatter = [&] { return gate.Wait(nullptr), absl::OkStatus(); };
  TestPages first(geometry_, Layout::kTokensFirst, 64, 2),
      second(geometry_, Layout::kHeadsFirst, 32, 4);
  TestPages on_host(geometry_, Layout::kEngineCpu, 16, 8);
  MoveToDevice(first);
  MoveToDevice(second);
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &first);
  const uint64_t pinned = devices_.pinned_bytes;
  auto job =
      client->Load({TestTokens(7, 128)}, 0, 128, first.PageIds(128, 7), Soon());
  gate.AwaitVisitor();
  ASSERT_TRUE(client->RegisterPages(second.cache()).ok());
  gate.Open();
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 128u);
  EXPECT_TRUE(first.memory() ==
              Expected(Layout::kTokensFirst, 64, 2, 7, 0, 128).memory());
  EXPECT_EQ(Load(client.get(), second, 7, 0, 128).token_count, 128u);
  EXPECT_TRUE(second.memory() ==
              Expected(Layout::kHeadsFirst, 32, 4, 7, 0, 128).memory());
  EXPECT_EQ(devices_.opened, 1);
  EXPECT_EQ(devices_.pinned_bytes, pinned);
  ASSERT_TRUE(client->RegisterPages(on_host.cache()).ok());
  EXPECT_EQ(Load(client.get(), on_host, 7, 0, 128).token_count, 128u);
  EXPECT_TRUE(on_host.memory() ==
              Expected(Layout::kEngineCpu, 16, 8, 7, 0, 128).memory());
}

TEST_F(DevicePagesTest, ClosingTheClientEndsWhatIsUnderWay) {
  ASSERT_TRUE(StoreSequence(7, 256));
  TestPages pages(geometry_, Layout::kTokensFirst, 64, 4);
  MoveToDevice(pages);
  std::unique_ptr<Client> client = ClientTest::Open(Config(), &pages);
  auto load =
      client->Load({TestTokens(7, 256)}, 0, 256, pages.PageIds(256, 7), Soon());
  auto store =
      client->Store({TestTokens(9, 256)}, 0, 256, pages.PageIds(256, 7));
  client.reset();
  EXPECT_TRUE((*load)->Wait(-1, kLong).ok());
  EXPECT_TRUE((*store)->Wait(-1, kLong).ok());
}

}  // namespace
}  // namespace latentkv
