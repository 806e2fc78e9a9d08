// What most tests of the client need: a daemon, a small model, clients on it.
#ifndef LATENTKV_TESTS_CLIENT_CLIENT_FIXTURE_H_
#define LATENTKV_TESTS_CLIENT_CLIENT_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/config.h"
#include "codec/basis.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/local_daemon.h"
#include "tests/client/test_pages.h"

namespace latentkv {

inline absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
inline constexpr absl::Duration kLong = absl::Seconds(30);

// One model, whose geometry is `geometry`.
ClientConfig TestConfig(std::shared_ptr<CacheChannel> channel,
                        const Geometry& geometry,
                        std::shared_ptr<const Basis> basis = nullptr);

// A basis in groups of so many layers whose latents are the channels
// themselves: a restored value is off by at most half of `step` and rounding.
// Profile "balanced". Different means give different bases.
std::shared_ptr<const Basis> PlainBasis(const Geometry& geometry,
                                        float mean = 0, float step = 0.0625,
                                        uint32_t layers_per_group = kLayersMax);

class ClientTest : public ::testing::Test {
 protected:
  // With these pages registered.
  std::unique_ptr<Client> Open(ClientConfig config, TestPages* pages) const;
  std::unique_ptr<Client> Open(TestPages* pages) const {
    return Open(TestConfig(daemon_.Connect(), geometry_), pages);
  }
  // Of a client that an engine would open, at profile "balanced" of `basis`,
  // which lies in a file beside the daemon's data.
  ClientOptions OptionsWith(const Basis& basis) const;
  // Computes tokens [0, count) of sequence `seed` in new pages and stores them;
  // whether all were acknowledged.
  bool StoreSequence(uint64_t seed, uint64_t count,
                     Values values = Values::kSmooth);
  // Loads what is stored of [first, count) into `pages`; the number of good
  // tokens.
  static TransferResult Load(Client* client, const TestPages& pages,
                             uint64_t seed, uint64_t first, uint64_t count);
  static uint64_t Match(Client* client, uint64_t seed, uint64_t count,
                        absl::Time deadline = Soon());
  // Pages like `like` that hold tokens [first, last) of the sequence and else
  // poison.
  TestPages Expected(Layout layout, uint32_t page_tokens, uint64_t page_count,
                     uint64_t seed, uint64_t first, uint64_t last) const;

  const Geometry geometry_ = SmallGeometry();
  LocalDaemon daemon_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_CLIENT_FIXTURE_H_
