// client/c/latentkv.h and latentkv_codec.h through the shared library, against
// the daemon's executable. Nothing else of ours is linked here.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "client/c/latentkv.h"
#include "client/c/latentkv_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/client/daemon_process.h"

extern "C" int latentkv_header_is_c(void);

namespace latentkv {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kLayers = 2, kHeads = 2, kDims = 8, kPageTokens = 32,
                   kPages = 10, kBlock = 64;
constexpr size_t kRowBytes = kHeads * kDims * 2,
                 kRawBytes = kBlock * kRowBytes * 2 * kLayers;

std::vector<double> Frequencies() { return {1, 0.1, 0.01, 0.001}; }

// bf16 of a normal distribution.
std::vector<uint8_t> SmoothBytes(uint64_t seed, size_t count) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; i += 2) {
    const float value = normal(random);
    std::memcpy(&bytes[i], reinterpret_cast<const uint8_t*>(&value) + 2, 2);
  }
  return bytes;
}

class CApiTest : public ::testing::Test {
 protected:
  CApiTest() {
    const latentkv_layer layer{
        kHeads, kDims, kDims, 1, 1.0f, 0, 1, 0, frequencies_.data()};
    layers_.assign(kLayers, layer);
    for (uint32_t l = 0; l < kLayers; ++l)
      memory_.push_back(SmoothBytes(l, 2 * kPages * kPageTokens * kRowBytes));
    for (std::vector<uint8_t>& layer : memory_) {
      const latentkv_strides strides{kPageTokens * kRowBytes, kRowBytes,
                                     kDims * 2, 2};
      pages_.push_back(
          {layer.data(), layer.data() + layer.size() / 2, strides, strides});
    }
    for (uint32_t i = 0; i < 256; ++i) tokens_.push_back(i * 7);
    for (uint64_t i = 0; i < 8; ++i) ids_.push_back(9 - i);
  }
  latentkv_options Options(const char* address) const {
    latentkv_options options{};
    options.struct_bytes = sizeof(options);
    options.address = address;
    options.model_digest = digest_;
    options.layers = layers_.data();
    options.layer_count = kLayers;
    return options;
  }
  latentkv_prompt Prompt() const {
    latentkv_prompt prompt{};
    prompt.struct_bytes = sizeof(prompt);
    prompt.tokens = tokens_.data();
    prompt.token_count = tokens_.size();
    return prompt;
  }
  latentkv_basis BasisOf(const latentkv_basis_group* group,
                         const latentkv_basis_profile* profile) const {
    latentkv_basis basis{};
    basis.struct_bytes = sizeof(basis);
    basis.description = "test";
    basis.layers = layers_.data();
    basis.layer_count = kLayers;
    basis.profile_count = basis.group_count = 1;
    basis.profiles = profile;
    basis.groups = group;
    return basis;
  }
  latentkv_client* Open(const char* address) {
    const latentkv_options options = Options(address);
    latentkv_client* client = nullptr;
    EXPECT_EQ(latentkv_open(&options, &client), LATENTKV_OK)
        << latentkv_error();
    EXPECT_EQ(latentkv_register_pages(client, pages_.data(), kLayers,
                                      kPageTokens, kPages),
              LATENTKV_OK);
    return client;
  }

  const std::vector<double> frequencies_ = Frequencies();
  const uint8_t digest_[32] = {1, 2, 3};
  std::vector<latentkv_layer> layers_;
  std::vector<std::vector<uint8_t>> memory_;
  std::vector<latentkv_page_layer> pages_;
  std::vector<uint32_t> tokens_;
  std::vector<uint64_t> ids_;
};

TEST_F(CApiTest, HeaderIsC) { EXPECT_EQ(latentkv_header_is_c(), 1); }

TEST_F(CApiTest, StoresMatchesAndLoads) {
  DaemonProcess daemon;
  latentkv_client* client = Open(daemon.address().c_str());
  const latentkv_prompt prompt = Prompt();
  latentkv_job* job = nullptr;
  ASSERT_EQ(
      latentkv_store(client, &prompt, 0, 256, ids_.data(), 8, nullptr, &job),
      LATENTKV_OK)
      << latentkv_error();
  latentkv_result result{};
  ASSERT_EQ(latentkv_wait(job, -1, 30000, &result), LATENTKV_OK);
  EXPECT_EQ(result.token_count, 256u);
  latentkv_job_free(job);
  ASSERT_EQ(
      latentkv_store(client, &prompt, 0, 64, ids_.data(), 8, nullptr, nullptr),
      LATENTKV_OK);
  ASSERT_EQ(latentkv_flush(client, 30000), LATENTKV_OK);
  uint64_t matched = 0;
  ASSERT_EQ(latentkv_match(client, &prompt, 1000, 10000, &matched),
            LATENTKV_OK);
  EXPECT_EQ(matched, 256u);

  const std::vector<std::vector<uint8_t>> computed = memory_;
  for (std::vector<uint8_t>& layer : memory_) {
    // All pages that the prompt has.
    for (size_t half : {size_t{0}, layer.size() / 2})
      std::memset(&layer[half + 2 * kPageTokens * kRowBytes], 0,
                  8 * kPageTokens * kRowBytes);
  }
  ASSERT_EQ(latentkv_load(client, &prompt, 0, 256, ids_.data(), 8, 10000,
                          nullptr, &job),
            LATENTKV_OK)
      << latentkv_error();
  for (int32_t layer : {0, 1, -1}) {
    ASSERT_EQ(latentkv_wait(job, layer, 30000, &result), LATENTKV_OK);
    EXPECT_EQ(result.token_count, 256u);
  }
  EXPECT_EQ(result.exact_blocks, 4u);
  EXPECT_EQ(latentkv_wait(job, -1, 0, nullptr), LATENTKV_OK);
  EXPECT_EQ(latentkv_wait(job, 2, 0, nullptr), LATENTKV_INVALID_ARGUMENT);
  latentkv_job_free(job);
  EXPECT_TRUE(memory_ == computed);

  latentkv_stats stats{};
  latentkv_get_stats(client, &stats);
  EXPECT_EQ(stats.lookups, 1u);
  EXPECT_EQ(stats.hit_tokens, 256u);
  EXPECT_EQ(stats.loaded_tokens, 256u);
  EXPECT_EQ(stats.loaded_bytes, result.frame_bytes);
  EXPECT_EQ(stats.stored_blocks, 5u);
  EXPECT_EQ(stats.stored_raw_bytes, 5 * kRawBytes);
  EXPECT_EQ(stats.breaker_open, 0u);
  latentkv_close(client);
}

// Two ranks with a head each, in memory that a client of all heads reads as
// well.
TEST_F(CApiTest, RanksStoreWhatOneClientLoads) {
  DaemonProcess daemon;
  const latentkv_prompt prompt = Prompt();
  const std::string meeting = daemon.folder() + "/engine";
  std::vector<latentkv_client*> ranks(2);
  for (uint32_t rank : {0, 1}) {
    latentkv_options options = Options(daemon.address().c_str());
    options.tensor_parallel_rank = rank;
    options.tensor_parallel_ranks = 2;
    options.tensor_parallel_meeting = meeting.c_str();
    ASSERT_EQ(latentkv_open(&options, &ranks[rank]), LATENTKV_OK)
        << latentkv_error();
    std::vector<latentkv_page_layer> pages = pages_;
    for (latentkv_page_layer& layer : pages) {
      layer.key = static_cast<uint8_t*>(layer.key) + rank * kDims * 2;
      layer.value = static_cast<uint8_t*>(layer.value) + rank * kDims * 2;
    }
    ASSERT_EQ(latentkv_register_pages(ranks[rank], pages.data(), kLayers,
                                      kPageTokens, kPages),
              LATENTKV_OK);
  }
  for (latentkv_client* rank : ranks) {
    ASSERT_EQ(
        latentkv_store(rank, &prompt, 0, 256, ids_.data(), 8, nullptr, nullptr),
        LATENTKV_OK);
  }
  for (latentkv_client* rank : ranks) {
    ASSERT_EQ(latentkv_flush(rank, 30000), LATENTKV_OK) << latentkv_error();
    latentkv_stats stats{};
    latentkv_get_stats(rank, &stats);
    EXPECT_EQ(stats.stored_blocks, 2u);
  }
  for (latentkv_client* rank : ranks) latentkv_close(rank);

  const std::vector<std::vector<uint8_t>> computed = memory_;
  for (std::vector<uint8_t>& layer : memory_) {
    for (size_t half : {size_t{0}, layer.size() / 2})
      std::memset(&layer[half + 2 * kPageTokens * kRowBytes], 0,
                  8 * kPageTokens * kRowBytes);
  }
  latentkv_client* client = Open(daemon.address().c_str());
  latentkv_job* job = nullptr;
  ASSERT_EQ(latentkv_load(client, &prompt, 0, 256, ids_.data(), 8, 10000,
                          nullptr, &job),
            LATENTKV_OK);
  latentkv_result result{};
  ASSERT_EQ(latentkv_wait(job, -1, 30000, &result), LATENTKV_OK);
  EXPECT_EQ(result.token_count, 256u);
  latentkv_job_free(job);
  latentkv_close(client);
  EXPECT_TRUE(memory_ == computed);

  latentkv_options options = Options(daemon.address().c_str());
  options.tensor_parallel_ranks = 2;
  latentkv_client* refused = nullptr;
  EXPECT_EQ(latentkv_open(&options, &refused), LATENTKV_INVALID_ARGUMENT);
  EXPECT_THAT(latentkv_error(), HasSubstr("a path at which they meet"));
}

TEST_F(CApiTest, KeepsSessions) {
  DaemonProcess daemon;
  latentkv_client* client = Open(daemon.address().c_str());
  const uint8_t said[] = {'a', 0, 'b'};
  ASSERT_EQ(latentkv_session_put(client, "talk", said, sizeof(said), 10000),
            LATENTKV_OK)
      << latentkv_error();
  uint8_t* record = nullptr;
  size_t bytes = 0;
  ASSERT_EQ(latentkv_session_get(client, "talk", &record, &bytes, 10000),
            LATENTKV_OK);
  EXPECT_EQ(std::string(record, record + bytes),
            std::string(said, said + sizeof(said)));
  latentkv_free(record);
  ASSERT_EQ(latentkv_session_delete(client, "talk", 10000), LATENTKV_OK);
  EXPECT_EQ(latentkv_session_get(client, "talk", &record, &bytes, 10000),
            LATENTKV_NOT_FOUND);
  EXPECT_EQ(record, nullptr);
  EXPECT_NE(std::string(latentkv_error()), "");
  latentkv_close(client);
}

TEST_F(CApiTest, DaemonThatIsAwayIsAMiss) {
  latentkv_client* client = Open("127.0.0.1:1");
  const latentkv_prompt prompt = Prompt();
  uint64_t matched = 7;
  EXPECT_EQ(latentkv_match(client, &prompt, 1000, 5000, &matched), LATENTKV_OK);
  EXPECT_EQ(matched, 0u);
  latentkv_job* job = nullptr;
  ASSERT_EQ(latentkv_load(client, &prompt, 0, 256, ids_.data(), 8, 5000,
                          nullptr, &job),
            LATENTKV_OK);
  latentkv_result result{9, 9, 9, 9};
  EXPECT_EQ(latentkv_wait(job, -1, 30000, &result), LATENTKV_OK);
  EXPECT_EQ(result.token_count, 0u);
  latentkv_job_free(job);
  EXPECT_EQ(
      latentkv_store(client, &prompt, 0, 256, ids_.data(), 8, nullptr, nullptr),
      LATENTKV_OK);
  EXPECT_EQ(latentkv_flush(client, 30000), LATENTKV_OK);
  EXPECT_EQ(latentkv_session_put(client, "talk", nullptr, 0, 5000),
            LATENTKV_UNAVAILABLE);
  latentkv_stats stats{};
  latentkv_get_stats(client, &stats);
  EXPECT_EQ(stats.breaker_open, 1u);
  latentkv_close(client);
}

TEST_F(CApiTest, NullIsRefusedWhereItMeansNothing) {
  latentkv_options options = Options("127.0.0.1:1");
  latentkv_client* client = nullptr;
  EXPECT_EQ(latentkv_open(nullptr, &client), LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_open(&options, nullptr), LATENTKV_INVALID_ARGUMENT);
  const auto refused = [&](const char* word) {
    EXPECT_EQ(latentkv_open(&options, &client), LATENTKV_INVALID_ARGUMENT);
    EXPECT_THAT(std::string(latentkv_error()), HasSubstr(word));
    EXPECT_EQ(client, nullptr);
    options = Options("127.0.0.1:1");
  };
  options.address = nullptr;
  refused("address");
  options.model_digest = nullptr;
  refused("model_digest");
  options.layers = nullptr;
  refused("layers");
  latentkv_layer bare = layers_[0];
  bare.inverse_frequencies = nullptr;
  options.layers = &bare;
  options.layer_count = 1;
  refused("inverse_frequencies");

  client = Open("127.0.0.1:1");
  const latentkv_prompt prompt = Prompt();
  uint64_t matched;
  latentkv_job* job = nullptr;
  EXPECT_EQ(latentkv_match(nullptr, &prompt, 0, 0, &matched),
            LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_match(client, nullptr, 0, 0, &matched),
            LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_match(client, &prompt, 0, 0, nullptr),
            LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_load(client, &prompt, 0, 64, ids_.data(), 8, 0, nullptr,
                          nullptr),
            LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_load(client, &prompt, 0, 64, nullptr, 8, 0, nullptr, &job),
            LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(
      latentkv_load(client, &prompt, 0, 64, ids_.data(), 1, 0, nullptr, &job),
      LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(
      latentkv_store(nullptr, &prompt, 0, 64, ids_.data(), 8, nullptr, &job),
      LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(job, nullptr);
  EXPECT_EQ(latentkv_wait(nullptr, 0, 0, nullptr), LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_flush(nullptr, 0), LATENTKV_INVALID_ARGUMENT);
  EXPECT_EQ(latentkv_session_get(client, nullptr, nullptr, nullptr, 0),
            LATENTKV_INVALID_ARGUMENT);
  latentkv_prompt without = Prompt();
  without.tokens = nullptr;
  EXPECT_EQ(latentkv_match(client, &without, 0, 0, &matched),
            LATENTKV_INVALID_ARGUMENT);
  latentkv_get_stats(nullptr, nullptr);
  latentkv_close(client);
  latentkv_close(nullptr);
  latentkv_job_free(nullptr);
  latentkv_codec_close(nullptr);
  latentkv_free(nullptr);
}

TEST_F(CApiTest, StructOfAnotherSizeIsRefused) {
  latentkv_options options = Options("127.0.0.1:1");
  latentkv_client* client = nullptr;
  options.struct_bytes = 0;
  EXPECT_EQ(latentkv_open(&options, &client), LATENTKV_INVALID_ARGUMENT);
  EXPECT_THAT(std::string(latentkv_error()), HasSubstr("struct_bytes"));
  client = Open("127.0.0.1:1");
  latentkv_prompt prompt = Prompt();
  prompt.struct_bytes += 8;
  uint64_t matched = 0;
  EXPECT_EQ(latentkv_match(client, &prompt, 0, 0, &matched),
            LATENTKV_INVALID_ARGUMENT);
  latentkv_close(client);
}

TEST_F(CApiTest, ErrorIsTheThreadsOwn) {
  EXPECT_EQ(latentkv_flush(nullptr, 0), LATENTKV_INVALID_ARGUMENT);
  std::thread([] { EXPECT_STREQ(latentkv_error(), ""); }).join();
  EXPECT_THAT(std::string(latentkv_error()), HasSubstr("client"));
  EXPECT_STREQ(latentkv_version(), LATENTKV_VERSION);
  EXPECT_EQ(latentkv_supports_devices(), LATENTKV_HAS_CUDA);
}

// The codec.

struct Group {
  std::vector<float> mean, row_scale, weight, sensitivity, latent_scale;
  std::vector<int8_t> decoder;
  latentkv_basis_group c;
};

Group PlainGroup() {
  constexpr uint32_t n = kLayers * 2 * kHeads * kDims;
  Group group{std::vector<float>(n),
              std::vector<float>(n, 1.0f / 64),
              std::vector<float>(n, 1),
              std::vector<float>(n, 1e-3f),
              std::vector<float>(n, 1),
              std::vector<int8_t>(n * n),
              {}};
  for (uint32_t i = 0; i < n; ++i) group.decoder[i * n + i] = 64;
  group.c = {0,
             kLayers,
             n,
             n,
             group.mean.data(),
             nullptr,
             group.row_scale.data(),
             group.weight.data(),
             group.sensitivity.data(),
             group.latent_scale.data(),
             group.decoder.data(),
             nullptr};
  return group;
}

TEST_F(CApiTest, CodecRestoresExactBitsAndBasisValues) {
  const std::string path = ::testing::TempDir() + "latentkv-c-api-" +
                           std::to_string(getpid()) + ".basis";
  const Group group = PlainGroup();
  const latentkv_basis_profile profile{"balanced", 0.0625f, 1};
  uint8_t digest[32] = {};
  const latentkv_basis basis = BasisOf(&group.c, &profile);
  ASSERT_EQ(latentkv_basis_write(path.c_str(), &basis, digest), LATENTKV_OK)
      << latentkv_error();
  latentkv_codec* codec = nullptr;
  ASSERT_EQ(latentkv_codec_open(path.c_str(), layers_.data(), kLayers, &codec),
            LATENTKV_OK)
      << latentkv_error();
  float step = 0, bound = 0;
  ASSERT_EQ(latentkv_codec_profile(codec, "balanced", &step, &bound),
            LATENTKV_OK);
  EXPECT_EQ(step, 0.0625f);
  EXPECT_EQ(bound, 1);
  EXPECT_EQ(latentkv_codec_profile(codec, "small", &step, &bound),
            LATENTKV_NOT_FOUND);

  const std::vector<uint8_t> raw = SmoothBytes(3, kRawBytes);
  for (float with : {0.0f, 0.0625f}) {
    uint8_t* frame = nullptr;
    size_t frame_bytes = 0;
    float loss = -1;
    ASSERT_EQ(latentkv_encode(codec, tokens_.data(), 128, raw.data(),
                              raw.size(), with, 0, &frame, &frame_bytes, &loss),
              LATENTKV_OK)
        << latentkv_error();
    EXPECT_EQ(loss > 0, with > 0);
    std::vector<uint8_t> restored(kRawBytes, 0xa5);
    ASSERT_EQ(latentkv_decode(codec, tokens_.data(), 128, frame, frame_bytes,
                              restored.data(), restored.size()),
              LATENTKV_OK);
    EXPECT_EQ(restored == raw, with == 0);
    for (size_t i = 0; i < raw.size(); i += 2) {
      float a = 0, b = 0;
      std::memcpy(reinterpret_cast<uint8_t*>(&a) + 2, &raw[i], 2);
      std::memcpy(reinterpret_cast<uint8_t*>(&b) + 2, &restored[i], 2);
      ASSERT_LT(std::abs(a - b), 0.06f) << i;
    }
    EXPECT_EQ(latentkv_decode(codec, tokens_.data(), 192, frame, frame_bytes,
                              restored.data(), restored.size()),
              LATENTKV_FAILED_PRECONDITION);
    frame[frame_bytes - 1] ^= 1;
    EXPECT_EQ(latentkv_decode(codec, tokens_.data(), 128, frame, frame_bytes,
                              restored.data(), restored.size()),
              LATENTKV_DATA_LOSS);
    EXPECT_EQ(latentkv_decode(codec, tokens_.data(), 128, frame, 20,
                              restored.data(), restored.size()),
              LATENTKV_DATA_LOSS);
    EXPECT_EQ(latentkv_decode(codec, tokens_.data(), 128, frame, frame_bytes,
                              restored.data(), 20),
              LATENTKV_INVALID_ARGUMENT);
    latentkv_free(frame);
  }
  latentkv_codec_close(codec);
  unlink(path.c_str());
}

TEST_F(CApiTest, BasisIsWrittenWholeOrNotAtAll) {
  const std::string folder =
      ::testing::TempDir() + "latentkv-c-api-gone-" + std::to_string(getpid());
  Group group = PlainGroup();
  const latentkv_basis_profile profile{"balanced", 0.0625f, 1};
  uint8_t digest[32] = {};
  const auto write = [&](const std::string& path) {
    const latentkv_basis basis = BasisOf(&group.c, &profile);
    return latentkv_basis_write(path.c_str(), &basis, digest);
  };
  EXPECT_EQ(write(folder + "/a.basis"), LATENTKV_NOT_FOUND);
  EXPECT_THAT(std::string(latentkv_error()), HasSubstr(folder));
  const std::string path = folder + ".basis";
  ASSERT_EQ(write(path), LATENTKV_OK);
  // Refused: what is there stays.
  group.row_scale[0] = -1;
  EXPECT_EQ(write(path), LATENTKV_INVALID_ARGUMENT);
  group.c.mean = nullptr;
  EXPECT_EQ(write(path), LATENTKV_INVALID_ARGUMENT);
  latentkv_codec* codec = nullptr;
  EXPECT_EQ(latentkv_codec_open(path.c_str(), layers_.data(), kLayers, &codec),
            LATENTKV_OK);
  latentkv_codec_close(codec);
  unlink(path.c_str());
  EXPECT_EQ(latentkv_codec_open(path.c_str(), layers_.data(), kLayers, &codec),
            LATENTKV_NOT_FOUND);
  EXPECT_EQ(codec, nullptr);
  ASSERT_EQ(latentkv_codec_open(nullptr, layers_.data(), kLayers, &codec),
            LATENTKV_OK);
  float number;
  EXPECT_EQ(latentkv_codec_profile(codec, "balanced", &number, &number),
            LATENTKV_NOT_FOUND);
  latentkv_codec_close(codec);
}

}  // namespace
}  // namespace latentkv
