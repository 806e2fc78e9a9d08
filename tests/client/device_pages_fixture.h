// A client whose pages lie on a device of host memory and threads;
// tests/kernels has the real one's copies.
#ifndef LATENTKV_TESTS_CLIENT_DEVICE_PAGES_FIXTURE_H_
#define LATENTKV_TESTS_CLIENT_DEVICE_PAGES_FIXTURE_H_

#include <atomic>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/fake_device.h"
#include "tests/client/wrapped_channel.h"

namespace latentkv {

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
  FakeDevices devices_;  // Outlives the clients.
  std::ostringstream log_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_DEVICE_PAGES_FIXTURE_H_
