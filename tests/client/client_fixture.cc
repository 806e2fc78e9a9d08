#include "tests/client/client_fixture.h"

#include <algorithm>
#include <fstream>
#include <utility>

namespace latentkv {

ClientConfig TestConfig(std::shared_ptr<CacheChannel> channel,
                        const Geometry& geometry,
                        std::shared_ptr<const Basis> basis) {
  ClientConfig config;
  config.channel = std::move(channel);
  config.scope.tenant = "tests";
  config.scope.model = Sha256({AsBytes("model")});
  config.thread_count = 2;
  if (basis != nullptr) {
    const Profile profile = *basis->FindProfile("balanced");
    config.write = {false, profile.step, profile.loss_own_max, 0};
    config.read = {{basis->digest()}, 4 * profile.loss_own_max};
  }
  config.codec = *Codec::Create(geometry, std::move(basis));
  return config;
}

std::shared_ptr<const Basis> PlainBasis(const Geometry& geometry, float mean,
                                        float step, uint32_t layers_per_group) {
  BasisParts parts;
  const uint32_t layers = geometry.layers.size();
  for (uint32_t first = 0; first < layers; first += layers_per_group) {
    BasisGroup group;
    group.first_layer = first;
    group.last_layer = std::min(layers, first + layers_per_group);
    for (uint32_t l = first; l < group.last_layer; ++l)
      group.channels += geometry.layers[l].Channels();
    const uint32_t n = group.rank = group.channels;
    group.mean.assign(n, mean);
    group.row_scale.assign(n, 1.0f / 64);
    group.weight.assign(n, 1);
    group.sensitivity.assign(n, 1e-3);
    group.latent_scale.assign(n, 1);
    group.decoder.assign(size_t{n} * n, 0);
    for (uint32_t i = 0; i < n; ++i) group.decoder[size_t{i} * n + i] = 64;
    parts.groups.push_back(std::move(group));
  }
  parts.geometry = geometry;
  parts.profiles = {{"balanced", step, 1}};
  parts.description = "a basis of the tests";
  return *Basis::Create(std::move(parts));
}

ClientOptions ClientTest::OptionsWith(const Basis& basis) const {
  ClientOptions options;
  options.address = daemon_.address();
  options.scope.model = Sha256({AsBytes("model")});
  options.geometry = geometry_;
  options.basis_path = daemon_.data() + ".basis";
  options.profile = "balanced";
  const Bytes& bytes = basis.serialized();
  std::ofstream file(options.basis_path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  EXPECT_TRUE(file.flush().good());
  return options;
}

std::unique_ptr<Client> ClientTest::Open(ClientConfig config,
                                         TestPages* pages) const {
  absl::StatusOr<std::unique_ptr<Client>> client =
      MakeClient(std::move(config));
  EXPECT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE((*client)->RegisterPages(pages->cache()).ok());
  return *std::move(client);
}

bool ClientTest::StoreSequence(uint64_t seed, uint64_t count, Values values) {
  TestPages pages(geometry_, Layout::kTokensFirst, 64, (count + 63) / 64);
  std::unique_ptr<Client> client = Open(&pages);
  const std::vector<uint64_t> ids = pages.PageIds(count, seed);
  pages.Compute(seed, ids, 0, count, values);
  const std::vector<uint32_t> tokens = TestTokens(seed, count);
  auto job = client->Store({tokens}, 0, count, ids);
  EXPECT_TRUE(job.ok()) << job.status();
  auto result = (*job)->Wait(-1, kLong);
  return result.ok() && result->token_count == count / 64 * 64;
}

TransferResult ClientTest::Load(Client* client, const TestPages& pages,
                                uint64_t seed, uint64_t first, uint64_t count) {
  const std::vector<uint32_t> tokens = TestTokens(seed, first + count);
  auto job = client->Load({tokens}, first, count,
                          pages.PageIds(first + count, seed), Soon());
  EXPECT_TRUE(job.ok()) << job.status();
  auto result = (*job)->Wait(-1, kLong);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : TransferResult{};
}

uint64_t ClientTest::Match(Client* client, uint64_t seed, uint64_t count,
                           absl::Time deadline) {
  const std::vector<uint32_t> tokens = TestTokens(seed, count);
  absl::StatusOr<uint64_t> matched =
      client->Match({tokens}, absl::Seconds(10), deadline);
  EXPECT_TRUE(matched.ok()) << matched.status();
  return matched.ok() ? *matched : 0;
}

TestPages ClientTest::Expected(Layout layout, uint32_t page_tokens,
                               uint64_t page_count, uint64_t seed,
                               uint64_t first, uint64_t last) const {
  TestPages expected(geometry_, layout, page_tokens, page_count);
  expected.Compute(seed, expected.PageIds(last, seed), first, last);
  return expected;
}

}  // namespace latentkv
