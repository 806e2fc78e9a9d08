// Ranks as processes with pages on one device: what four wrote over NCCL, one
// and two restore there to the pages that the CPU restores, bit for bit; and a
// rank that is killed in the middle of an exchange. tests/client/README.md says
// how it runs on a machine that has a device and none of our packages.
#include <cuda_runtime_api.h>
#include <signal.h>

#include <atomic>
#include <iostream>
#include <sstream>

#include "core/limits.h"
#include "kernels/rotary.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/rank_files.h"
#include "tests/storage/scratch_folder.h"
#include "tests/transport/rank_process.h"
#include "transport/grpc_channel.h"
#include "transport/rank_links.h"
#include "transport/rank_mesh.h"

namespace latentkv {
namespace {

constexpr uint32_t kHeads = 4, kBlocks = 19, kPageTokens = 32;
constexpr uint64_t kTokens = kBlocks * kBlockTokens,
                   kPages = kTokens / kPageTokens;
// Four processes share a device and some cores.
constexpr absl::Duration kPatience = absl::Seconds(3),
                         kSlack = absl::Seconds(5);
// Of NCCL, to give its buffers back (transport/nccl/communicator.h).
constexpr absl::Duration kAbort = absl::Seconds(2);

// What the kernels of a device restore.
Geometry Model() { return SmallGeometry(4, kHeads, 64); }
std::shared_ptr<const Basis> BasisOf(const std::string& kind) {
  return kind == "basis" ? PlainBasis(Model(), 0, 0.0625, 2) : nullptr;
}
TestPages PagesOf(const Geometry& held) {
  return TestPages(held, Layout::kHeadsFirst, kPageTokens, kPages);
}

#define LATENTKV_MUST(condition, why)                                       \
  if (!(condition)) {                                                       \
    std::cerr << __FILE__ << ":" << __LINE__ << ": " << (why) << std::endl; \
    std::_Exit(1);                                                          \
  }

// The memory of `host` on the device.
class OnDevice {
 public:
  explicit OnDevice(TestPages* host) : host_(*host), cache_(host->cache()) {
    for (size_t l = 0; l < cache_.layers.size(); ++l) {
      const Bytes& memory = host_.memory()[l];
      void* there = nullptr;
      LATENTKV_MUST(cudaMalloc(&there, memory.size()) == cudaSuccess,
                    "no memory");
      memory_.push_back(static_cast<uint8_t*>(there));
      PagedLayer& layer = cache_.layers[l];
      layer.value = memory_[l] + (layer.value - memory.data());
      layer.key = memory_[l] + (layer.key - memory.data());
    }
    Upload();
  }
  void Upload() {
    for (size_t l = 0; l < memory_.size(); ++l) {
      const Bytes& from = host_.memory()[l];
      LATENTKV_MUST(cudaMemcpy(memory_[l], from.data(), from.size(),
                               cudaMemcpyHostToDevice) == cudaSuccess,
                    "upload");
    }
  }
  std::string Download() const {
    std::string all;
    for (size_t l = 0; l < memory_.size(); ++l) {
      std::string layer(host_.memory()[l].size(), 0);
      LATENTKV_MUST(cudaMemcpy(layer.data(), memory_[l], layer.size(),
                               cudaMemcpyDeviceToHost) == cudaSuccess,
                    "download");
      all += layer;
    }
    return all;
  }
  const PagedCache& cache() const { return cache_; }

 private:
  const TestPages& host_;
  PagedCache cache_;
  std::vector<uint8_t*> memory_;
};

// Its process is killed where it would exchange for the second time, which the
// others are in by then.
class DoomedLink final : public RankLink {
 public:
  explicit DoomedLink(std::unique_ptr<RankLink> inner)
      : inner_(std::move(inner)) {}
  uint64_t generation() const override { return inner_->generation(); }
  uint64_t bytes_max() const override { return inner_->bytes_max(); }
  absl::Status Exchange(absl::Span<const std::vector<RankPart>> to,
                        absl::Span<const uint64_t> from_bytes,
                        const std::function<void(uint32_t, ByteSpan)>& take,
                        absl::Time deadline) override {
    if (++exchanges_ == 2) raise(SIGKILL);
    return inner_->Exchange(to, from_bytes, take, deadline);
  }

 private:
  const std::unique_ptr<RankLink> inner_;
  int exchanges_ = 0;
};

struct Role {
  std::string act, kind;
  uint64_t first = 1;
  bool doomed = false;
  uint32_t rank = 0, ranks = 0;
  std::string folder;
};

// A rank of an engine, with pages on the device.
class RankOnDevice {
 public:
  explicit RankOnDevice(const Role& role)
      : rank_(role.rank),
        share_(*HeadShare::Create(Model(), role.rank, role.ranks)),
        pages_(PagesOf(share_.held())),
        device_(&pages_) {
    const RankFiles files(role.folder);
    ClientConfig config = TestConfig(*MakeGrpcChannel(files.Read("address")),
                                     Model(), BasisOf(role.kind));
    config.staging_bytes_max = uint64_t{64} << 20;
    config.logger = std::make_shared<spdlog::logger>(
        "rank", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
    config.share = std::make_shared<const HeadShare>(share_);
    if (role.ranks > 1) {
      RankMeshOptions mesh = {role.rank, role.ranks, files.Path(role.act),
                              kPatience, DeviceRankLinks()};
      if (role.doomed) {
        mesh.make_link = [](uint32_t device, const GroupPlace& place,
                            const RankJoin& join, absl::Time deadline)
            -> absl::StatusOr<std::unique_ptr<RankLink>> {
          absl::StatusOr<std::unique_ptr<RankLink>> link =
              DeviceRankLinks()(device, place, join, deadline);
          if (!link.ok()) return link.status();
          return std::make_unique<DoomedLink>(*std::move(link));
        };
      }
      absl::StatusOr<std::unique_ptr<RankExchange>> opened = OpenRankMesh(mesh);
      LATENTKV_MUST(opened.ok(), opened.status().ToString());
      config.ranks = exchange_ = *std::move(opened);
    }
    client_ = *MakeClient(std::move(config));
    const absl::Status registered = client_->RegisterPages(device_.cache());
    LATENTKV_MUST(registered.ok(), registered.ToString());
  }

  // A conversation in some steps; the least tokens of them that were stored,
  // and their number.
  uint64_t Store(uint64_t seed) {
    const std::vector<uint64_t> ids = pages_.PageIds(kTokens, seed);
    TestPages whole = PagesOf(Model());
    whole.Compute(seed, ids, 0, kTokens);
    pages_.TakeHeads(
        whole, HeadsOfRank(Model(), rank_, share_.ranks()).value()[0].first);
    device_.Upload();
    uint64_t first = 0, stored = 0;
    for (const uint64_t blocks : {9, 5, 1, 1, 1, 1, 1}) {
      auto job =
          client_->Store({TestTokens(seed, first + blocks * kBlockTokens)},
                         first, blocks * kBlockTokens, ids);
      LATENTKV_MUST(job.ok(), job.status().ToString());
      auto result = (*job)->Wait(-1, kForever);
      if (result.ok()) stored += result->token_count;
      first += blocks * kBlockTokens;
    }
    return stored;
  }
  uint64_t over_link() const { return exchange_->batches_over_link(); }
  uint64_t Load(uint64_t seed) {
    pages_.Poison();
    device_.Upload();
    const std::vector<uint64_t> ids = pages_.PageIds(kTokens, seed);
    auto job = client_->Load({TestTokens(seed, kTokens)}, 0, kTokens, ids,
                             absl::Now() + kForever);
    LATENTKV_MUST(job.ok(), job.status().ToString());
    auto result = (*job)->Wait(-1, kForever);
    return result.ok() ? result->token_count : 0;
  }
  std::string Pages() const { return device_.Download(); }
  std::string log() const { return log_.str(); }

 private:
  const uint32_t rank_;
  const HeadShare share_;
  TestPages pages_;
  OnDevice device_;
  std::ostringstream log_;
  std::shared_ptr<RankExchange> exchange_;
  std::unique_ptr<Client> client_;
};

// Stores conversation after conversation when the test says so, until it is
// killed.
int Write(const Role& role) {
  const RankFiles files(role.folder);
  RankOnDevice rank(role);
  files.Write(absl::StrCat("ready-", role.rank));
  for (uint64_t seed = role.first;; ++seed) {
    if (!files.Await(absl::StrCat("go-", seed))) return 3;
    const absl::Time began = absl::Now();
    const uint64_t stored = rank.Store(seed);
    files.Write(absl::StrCat("done-", role.rank, "-", seed),
                absl::StrCat(stored, " ", rank.over_link(), " ",
                             absl::ToInt64Milliseconds(absl::Now() - began)));
    std::cerr << rank.log();
  }
}

int Read(const Role& role) {
  RankOnDevice rank(role);
  const uint64_t loaded = rank.Load(role.first);
  LATENTKV_MUST(loaded == kTokens,
                absl::StrCat(loaded, " tokens were loaded: ", rank.log()));
  LATENTKV_MUST(rank.log().find("on the CPU") == std::string::npos, rank.log());
  RankFiles(role.folder)
      .Write(absl::StrCat("pages-", role.ranks, "-", role.rank), rank.Pages());
  return 0;
}

class RankDeviceTest : public ::testing::TestWithParam<const char*> {
 protected:
  struct Done {
    uint64_t tokens = 0, over_link = 0;
    int64_t ms = 0;
  };
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no device: NOT RUN";
    files_.Write("address", daemon_.address());
  }
  void Start(const std::string& role, uint32_t rank, uint32_t ranks) {
    if (processes_.size() <= rank) processes_.resize(rank + 1);
    processes_[rank] =
        std::make_unique<RankProcess>(role, rank, ranks, folder_.path());
  }
  void StartWriter(const std::string& role, uint32_t rank) {
    std::filesystem::remove(files_.Path("ready-", rank));
    Start(role, rank, 4);
    ASSERT_TRUE(files_.Await(absl::StrCat("ready-", rank)));
  }
  void Go(uint64_t seed) { files_.Write(absl::StrCat("go-", seed)); }
  Done DoneBy(uint32_t rank, uint64_t seed) {
    const std::string name = absl::StrCat("done-", rank, "-", seed);
    EXPECT_TRUE(files_.Await(name)) << name;
    Done done;
    std::istringstream(files_.Read(name)) >> done.tokens >> done.over_link >>
        done.ms;
    return done;
  }
  static std::string AllOf(const TestPages& pages) {
    std::string all;
    for (const Bytes& layer : pages.memory())
      all.append(layer.begin(), layer.end());
    return all;
  }
  // Sum of squares of bf16 values.
  static double Apart(const TestPages& one, const TestPages& other) {
    const std::string a = AllOf(one), b = AllOf(other);
    const auto values = [](const std::string& bytes) {
      std::vector<float> floats(bytes.size() / sizeof(uint16_t));
      ToFloat(Model().layers[0].dtype, AsBytes(bytes).data(), floats.size(),
              floats.data());
      return floats;
    };
    const std::vector<float> x = values(a), y = values(b);
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i)
      sum += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    return sum;
  }
  // What a client of all heads restores of a conversation on the CPU.
  TestPages RestoredOnTheCpu(const LocalDaemon& daemon, const std::string& kind,
                             uint64_t seed) {
    TestPages pages = PagesOf(Model());
    std::unique_ptr<Client> client =
        *MakeClient(TestConfig(daemon.Connect(), Model(), BasisOf(kind)));
    EXPECT_TRUE(client->RegisterPages(pages.cache()).ok());
    auto job = client->Load({TestTokens(seed, kTokens)}, 0, kTokens,
                            pages.PageIds(kTokens, seed), Soon());
    EXPECT_EQ((*job)->Wait(-1, kForever)->token_count, kTokens);
    return pages;
  }

  ScratchFolder folder_;
  const RankFiles files_{folder_.path()};
  LocalDaemon daemon_, other_daemon_;
  std::vector<std::unique_ptr<RankProcess>> processes_;
};

TEST_P(RankDeviceTest, WhatFourRanksWroteOneAndTwoRanksRestoreToTheSamePages) {
  const std::string kind = GetParam();
  for (uint32_t rank = 0; rank < 4; ++rank)
    StartWriter(absl::StrCat("write-", kind, "-1-0"), rank);
  Go(1);
  for (uint32_t rank = 0; rank < 4; ++rank) {
    const Done done = DoneBy(rank, 1);
    EXPECT_EQ(done.tokens, kTokens);
    EXPECT_GE(done.over_link, 6u)
        << "but for the first batch, after which ranks connect";
    std::cout << "rank " << rank << " stored in " << done.ms << " ms, "
              << done.over_link << " batches over NCCL" << std::endl;
  }
  processes_.clear();

  // The same conversation, by one client of all heads in host memory.
  TestPages computed = PagesOf(Model());
  const std::vector<uint64_t> ids = computed.PageIds(kTokens, 1);
  computed.Compute(1, ids, 0, kTokens);
  std::unique_ptr<Client> writer =
      *MakeClient(TestConfig(other_daemon_.Connect(), Model(), BasisOf(kind)));
  ASSERT_TRUE(writer->RegisterPages(computed.cache()).ok());
  auto job = writer->Store({TestTokens(1, kTokens)}, 0, kTokens, ids);
  ASSERT_EQ((*job)->Wait(-1, kForever)->token_count, kTokens);
  const TestPages expected = RestoredOnTheCpu(daemon_, kind, 1);
  const TestPages alone = RestoredOnTheCpu(other_daemon_, kind, 1);
  if (kind == "exact") {
    EXPECT_TRUE(AllOf(alone) == AllOf(expected));
  } else {
    // The device encodes what ranks store, and rounds residuals more coarsely
    // than the CPU (docs/decisions/0021-encoding-on-the-gpu.md).
    EXPECT_LT(Apart(expected, computed), 1.25 * Apart(alone, computed));
  }

  for (const uint32_t ranks : {1u, 2u, 4u}) {
    for (uint32_t rank = 0; rank < ranks; ++rank)
      Start(absl::StrCat("read-", kind, "-1-0"), rank, ranks);
    for (uint32_t rank = 0; rank < ranks; ++rank)
      EXPECT_EQ(processes_[rank]->Ended(absl::Now() + kForever), "exit 0");
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      TestPages held = PagesOf(HeadShare::Create(Model(), rank, ranks)->held());
      held.TakeHeads(expected,
                     HeadsOfRank(Model(), rank, ranks).value()[0].first);
      EXPECT_TRUE(files_.Read(absl::StrCat("pages-", ranks, "-", rank)) ==
                  AllOf(held))
          << rank << " of " << ranks;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RankDeviceTest,
                         ::testing::Values("exact", "basis"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

class RankDeathOnDeviceTest : public RankDeviceTest {};

TEST_P(RankDeathOnDeviceTest,
       OthersAreFreeByTheDeadlineAndLaterStoresAreWhole) {
  for (uint32_t rank = 0; rank < 4; ++rank)
    StartWriter(absl::StrCat("write-exact-1-", rank == 2), rank);
  Go(1);
  EXPECT_EQ(processes_[2]->Ended(absl::Now() + kForever), "signal 9");
  for (const uint32_t rank : {0, 1, 3}) {
    const Done done = DoneBy(rank, 1);
    std::cout << "rank " << rank << " was free after " << done.ms << " ms"
              << std::endl;
    EXPECT_LT(done.tokens, kTokens);
  }
  Go(2);
  for (const uint32_t rank : {0, 1, 3}) {
    const Done done = DoneBy(rank, 2);
    std::cout << "rank " << rank << " gave a conversation up after " << done.ms
              << " ms\n";
    EXPECT_EQ(done.tokens, 0u);
    EXPECT_LT(absl::Milliseconds(done.ms), kPatience + kAbort + kSlack);
  }
  StartWriter("write-exact-3-0", 2);
  uint64_t seed = 2;
  for (bool whole = false; !whole && seed < 10;) {
    Go(++seed);
    whole = true;
    for (uint32_t rank = 0; rank < 4; ++rank)
      whole &= DoneBy(rank, seed).tokens == kTokens;
  }
  EXPECT_LT(seed, 7u);
}

INSTANTIATE_TEST_SUITE_P(Kinds, RankDeathOnDeviceTest,
                         ::testing::Values("exact"), [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  char act[16] = "", kind[16] = "";
  unsigned long long first = 0;
  int doomed = 0;
  if (argc == 6 && sscanf(argv[2], "%15[a-z]-%15[a-z]-%llu-%d", act, kind,
                          &first, &doomed) == 4) {
    const latentkv::Role role = {act,
                                 kind,
                                 first,
                                 doomed != 0,
                                 static_cast<uint32_t>(atoi(argv[3])),
                                 static_cast<uint32_t>(atoi(argv[4])),
                                 argv[5]};
    return role.act == "write" ? latentkv::Write(role) : latentkv::Read(role);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
