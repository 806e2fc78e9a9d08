// Blocks that the device encodes on which the engine works, and those that it
// leaves to the CPU. The device is one of host memory and threads, whose frames
// say a loss that the CPU never does.
#include <chrono>
#include <sstream>
#include <thread>

#include "core/limits.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/fake_device.h"

namespace latentkv {
namespace {

constexpr float kSaid = FakeDevices::kSaidLoss;

// Whether a loss is what the device said of an error, `share` of kSaid, and
// what the client makes of it by the bytes. The CPU's are below a tenth.
MATCHER_P(IsSaid, share, "") {
  return arg > 0.8 * share * kSaid && arg < 1.25 * share * kSaid;
}

class DeviceEncoderTest : public ClientTest {
 protected:
  DeviceEncoderTest()
      : basis_(PlainBasis(geometry_, 0, 0.125, 1)),
        pages_(geometry_, Layout::kHeadsFirst, 32, 40) {
    for (const Bytes& layer : pages_.memory())
      devices_.Hold(layer.data(), layer.size(), 0);
    codec_ = Codec::Create(geometry_, basis_).value();
    devices_.basis = basis_.get();
    devices_.encoder = codec_.get();
  }
  // A client whose device is ready to encode.
  void Start(float loss_own_max = 1) { Start(&daemon_, loss_own_max); }
  void Start(LocalDaemon* daemon, float loss_own_max) {
    ClientConfig config = TestConfig(daemon->Connect(), geometry_, basis_);
    config.devices = &devices_;
    config.write.loss_own_max = loss_own_max;
    devices_.said_step = config.write.step;
    config.logger = std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
    client_ = ClientTest::Open(config, &pages_);
    for (uint64_t seed = 1000; devices_.encoded_batches == 0 && seed < 1500;
         ++seed) {
      Store(seed, 1);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_GT(devices_.encoded_batches, 0);
    devices_.encoded_batches = devices_.encoded_blocks = 0;
  }
  // `blocks` blocks of a chain, in pages of its own.
  TransferResult Store(uint64_t seed, uint32_t blocks) {
    ids_ = pages_.PageIds(blocks * kBlockTokens, seed);
    pages_.Compute(seed, ids_, 0, blocks * kBlockTokens);
    auto job = client_->Store({TestTokens(seed, blocks * kBlockTokens)}, 0,
                              blocks * kBlockTokens, ids_);
    return (*job)->Wait(-1, kLong).value();
  }
  std::string log() const { return log_.str(); }

  FakeDevices devices_;
  const std::shared_ptr<const Basis> basis_;
  std::unique_ptr<Codec> codec_;
  TestPages pages_;
  std::vector<uint64_t> ids_;
  std::ostringstream log_;
  std::unique_ptr<Client> client_;  // Before the devices are gone.
};

TEST_F(DeviceEncoderTest,
       FramesOfTheDeviceAreStoredAndRestoreWhatThePagesHeld) {
  Start();
  devices_.on_encode = [](size_t) {
    // Blocks gather behind it.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return absl::OkStatus();
  };
  const uint64_t before = client_->Stats().device_encoded_blocks;
  const TransferResult stored = Store(7, 12);
  EXPECT_EQ(stored.token_count, 12 * kBlockTokens);
  EXPECT_THAT(stored.loss_chain, IsSaid(1));
  EXPECT_EQ(devices_.encoded_blocks, 12);
  EXPECT_EQ(client_->Stats().device_encoded_blocks, before + 12);
  EXPECT_LT(devices_.encoded_batches, 12) << "some were encoded together";
  // The same on the CPU, of the same pages.
  TestPages on_host(geometry_, Layout::kHeadsFirst, 32, 40);
  on_host.Compute(7, ids_, 0, 12 * kBlockTokens);
  pages_.Poison();
  EXPECT_EQ(Load(client_.get(), pages_, 7, 0, 12 * kBlockTokens).token_count,
            12 * kBlockTokens);
  LocalDaemon other_daemon;
  std::unique_ptr<Client> cpu = ClientTest::Open(
      TestConfig(other_daemon.Connect(), geometry_, basis_), &on_host);
  auto job = cpu->Store({TestTokens(7, 12 * kBlockTokens)}, 0,
                        12 * kBlockTokens, ids_);
  EXPECT_LT((*job)->Wait(-1, kLong)->loss_chain, kSaid / 10);
  on_host.Poison();
  EXPECT_EQ(Load(cpu.get(), on_host, 7, 0, 12 * kBlockTokens).token_count,
            12 * kBlockTokens);
  EXPECT_TRUE(pages_.memory() == on_host.memory());
  EXPECT_EQ(log(), "");
}

TEST_F(DeviceEncoderTest, WhatTheDeviceLeavesTheCpuEncodes) {
  Start();
  devices_.on_encode_block = [](uint32_t first_token) {
    return first_token == 2 * kBlockTokens
               ? absl::ResourceExhaustedError("large latents")
               : absl::OkStatus();
  };
  const uint64_t before = client_->Stats().device_encoded_blocks;
  EXPECT_EQ(Store(8, 3).token_count, 3 * kBlockTokens);
  EXPECT_EQ(devices_.encoded_blocks, 2);
  EXPECT_EQ(client_->Stats().device_encoded_blocks, before + 2);
  EXPECT_LT(Store(9, 3).loss_chain, kSaid / 10);  // That of the last block.
  EXPECT_THAT(Store(10, 2).loss_chain, IsSaid(1));
}

TEST_F(DeviceEncoderTest, BlocksOverTheirBoundAreEncodedAtFinerSteps) {
  Start(kSaid / 3);
  const uint64_t before = client_->Stats().guarded_blocks;
  const TransferResult stored = Store(11, 2);
  EXPECT_EQ(stored.token_count, 2 * kBlockTokens);
  EXPECT_THAT(stored.loss_chain, IsSaid(0.25));
  EXPECT_EQ(devices_.encoded_blocks, 8) << "twice at the first of three steps";
  EXPECT_EQ(client_->Stats().guarded_blocks, before + 2);
  pages_.Poison();
  EXPECT_EQ(Load(client_.get(), pages_, 11, 0, 2 * kBlockTokens).token_count,
            2 * kBlockTokens);
  // A quarter of the error is a quarter of the loss: the text is the same.
  LocalDaemon other_daemon;
  Start(&other_daemon, 1);
  EXPECT_FLOAT_EQ(Store(11, 2).loss_chain, 4 * stored.loss_chain);
  client_.reset();  // Before its daemon.
}

TEST_F(DeviceEncoderTest, WhatSeemsOverItsBoundIsMeasuredWellBeforeItIsFiner) {
  devices_.whole_loss = 0.25;
  Start(kSaid / 3);
  const TransferResult stored = Store(11, 2);
  EXPECT_THAT(stored.loss_chain, IsSaid(0.25));
  EXPECT_EQ(devices_.encoded_blocks, 4);
}

TEST_F(DeviceEncoderTest, ABatchThatTheDeviceHasNoMemoryForIsTheCpusAlone) {
  Start();
  devices_.on_encode = [](size_t) {
    return absl::ResourceExhaustedError("no device memory");
  };
  EXPECT_LT(Store(15, 2).loss_chain, kSaid / 10);
  EXPECT_THAT(log(), ::testing::HasSubstr("no device memory"));
  devices_.on_encode = nullptr;
  EXPECT_THAT(Store(16, 2).loss_chain, IsSaid(1));
}

TEST_F(DeviceEncoderTest, ABlockOverItsBoundAtAllStepsIsTheCpus) {
  Start(kSaid / 5);
  const uint64_t before = client_->Stats().device_encoded_blocks;
  const TransferResult stored = Store(11, 2);
  EXPECT_EQ(stored.token_count, 2 * kBlockTokens);
  EXPECT_EQ(devices_.encoded_blocks, 8);
  EXPECT_EQ(client_->Stats().device_encoded_blocks, before);
}

// A job keeps its pages, and with them what the device holds for them.
TEST_F(DeviceEncoderTest,
       AClientThatGoesWhileItsDeviceOpensLeavesItsJobsAlone) {
  devices_.encoder_never_opens = true;
  devices_.said_step = 1;
  ClientConfig config = TestConfig(daemon_.Connect(), geometry_, basis_);
  config.devices = &devices_;
  config.write.loss_own_max = 1;
  client_ = ClientTest::Open(config, &pages_);
  config = {};
  EXPECT_EQ(Store(14, 2).token_count, 2 * kBlockTokens) << "by the CPU";
  auto job = client_->Load({TestTokens(14, 2 * kBlockTokens)}, 0,
                           2 * kBlockTokens, ids_, Soon());
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 2 * kBlockTokens);
  for (const absl::Time end = Soon(); devices_.encoders_opening == 0;) {
    ASSERT_LT(absl::Now(), end);
    absl::SleepFor(absl::Milliseconds(1));
  }
  client_.reset();
  EXPECT_EQ(devices_.encoders_opening, 0) << "it would use what is gone";
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, 2 * kBlockTokens);
}

TEST_F(DeviceEncoderTest,
       AfterAnErrorOfTheDeviceTheCpuEncodesAndNothingIsLost) {
  Start();
  devices_.on_encode = [](size_t) {
    return absl::InternalError("the device fell off the bus");
  };
  const TransferResult stored = Store(12, 6);
  EXPECT_EQ(stored.token_count, 6 * kBlockTokens);
  EXPECT_LT(stored.loss_chain, kSaid / 10);
  EXPECT_THAT(log(), ::testing::HasSubstr("the device fell off the bus"));
  const int batches = devices_.encoded_batches;
  EXPECT_EQ(Store(13, 2).token_count, 2 * kBlockTokens);
  EXPECT_EQ(devices_.encoded_batches, batches) << "it was asked again";
}

}  // namespace
}  // namespace latentkv
