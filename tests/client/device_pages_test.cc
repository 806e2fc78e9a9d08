// Pages on a device: what is loaded and stored, in which order, and what
// becomes of its failures.
#include <atomic>

#include "core/limits.h"
#include "tests/client/device_pages_fixture.h"

namespace latentkv {
namespace {

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
