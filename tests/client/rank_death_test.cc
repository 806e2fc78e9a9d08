// Ranks as processes, of which one is killed or stopped in the middle of a
// store: the others go on, and so do all once it is back.
#include <signal.h>

#include <atomic>
#include <iostream>
#include <sstream>

#include "core/limits.h"
#include "tests/client/client_fixture.h"
#include "tests/client/rank_files.h"
#include "tests/storage/scratch_folder.h"
#include "tests/transport/rank_process.h"
#include "transport/grpc_channel.h"
#include "transport/rank_mesh.h"

namespace latentkv {
namespace {

constexpr uint32_t kRanks = 4, kBlocks = 24, kPageTokens = 64;
constexpr uint64_t kTokens = kBlocks * kBlockTokens;
constexpr absl::Duration kPatience = absl::Seconds(1);
// Of a process on a busy machine.
constexpr absl::Duration kSlack = absl::Seconds(3);

Geometry Model() { return SmallGeometry(4, kRanks, 64); }

// Passes everything on, and takes its process away after so many parts.
class DoomedExchange final : public RankExchange {
 public:
  DoomedExchange(std::unique_ptr<RankExchange> inner, int signal)
      : inner_(std::move(inner)), signal_(signal) {}
  uint32_t rank() const override { return inner_->rank(); }
  uint32_t ranks() const override { return inner_->ranks(); }
  absl::StatusOr<RankAgreement> Exchange(const RankBatch& batch,
                                         const TakePart& take) override {
    ++batches_;
    return inner_->Exchange(
        batch, [&](uint32_t block, uint32_t from, ByteSpan part) {
          if (signal_ != 0 && batches_ == 2 && ++parts_ == 8) raise(signal_);
          take(block, from, part);
        });
  }
  uint64_t batches_over_link() const override {
    return inner_->batches_over_link();
  }
  absl::Status link_status() const override { return inner_->link_status(); }
  void Close() override { inner_->Close(); }

 private:
  const std::unique_ptr<RankExchange> inner_;
  const int signal_;
  std::atomic<int> batches_{0}, parts_{0};
};

// Stores conversation after conversation, from `first` on, each when the test
// says so: seed, tokens, milliseconds.
int StoreUntilStopped(uint32_t rank, int signal, uint64_t first,
                      const std::string& folder) {
  const RankFiles files(folder);
  ClientConfig config =
      TestConfig(*MakeGrpcChannel(files.Read("address")), Model());
  HeadShare share = *HeadShare::Create(Model(), rank, kRanks);
  TestPages pages(share.held(), Layout::kTokensFirst, kPageTokens,
                  kTokens / kPageTokens);
  config.share = std::make_shared<const HeadShare>(std::move(share));
  config.ranks = std::make_shared<DoomedExchange>(
      *OpenRankMesh({rank, kRanks, files.Path("engine"), kPatience, nullptr}),
      signal);
  std::unique_ptr<Client> client = *MakeClient(std::move(config));
  if (!client->RegisterPages(pages.cache()).ok()) return 2;
  files.Write(absl::StrCat("ready-", rank));
  for (uint64_t seed = first;; ++seed) {
    if (!files.Await(absl::StrCat("go-", seed))) return 3;
    const std::vector<uint64_t> ids = pages.PageIds(kTokens, seed);
    TestPages whole(Model(), Layout::kTokensFirst, kPageTokens,
                    kTokens / kPageTokens);
    whole.Compute(seed, ids, 0, kTokens);
    pages.TakeHeads(whole, rank);
    const absl::Time began = absl::Now();
    auto job = client->Store({TestTokens(seed, kTokens)}, 0, kTokens, ids);
    const absl::Duration called = absl::Now() - began;
    auto result = (*job)->Wait(-1, kForever);
    if (!result.ok()) return 4;
    files.Write(absl::StrCat("done-", rank, "-", seed),
                absl::StrCat(result->token_count, " ",
                             absl::ToInt64Milliseconds(called), " ",
                             absl::ToInt64Milliseconds(absl::Now() - began)));
  }
}

struct Doom {
  const char* name;
  uint32_t rank;
  int signal;
};
std::ostream& operator<<(std::ostream& out, const Doom& doom) {
  return out << doom.name;
}

class RankDeathTest : public ::testing::TestWithParam<Doom> {
 protected:
  struct Done {
    uint64_t tokens = 0;
    int64_t call_ms = -1, ms = -1;
  };
  RankDeathTest() { files_.Write("address", daemon_.address()); }

  void Go(uint64_t seed) { files_.Write(absl::StrCat("go-", seed)); }
  Done DoneBy(uint32_t rank, uint64_t seed) {
    const std::string name = absl::StrCat("done-", rank, "-", seed);
    EXPECT_TRUE(files_.Await(name)) << name;
    Done done;
    std::istringstream(files_.Read(name)) >> done.tokens >> done.call_ms >>
        done.ms;
    return done;
  }
  void Start(uint32_t rank, const std::string& role) {
    const std::string ready = absl::StrCat("ready-", rank);
    std::filesystem::remove(files_.Path(ready));
    processes_[rank] =
        std::make_unique<RankProcess>(role, rank, kRanks, folder_.path());
    ASSERT_TRUE(files_.Await(ready));
  }

  ScratchFolder folder_;
  const RankFiles files_{folder_.path()};
  LocalDaemon daemon_;
  std::unique_ptr<RankProcess> processes_[kRanks];
};

TEST_P(RankDeathTest, OthersAreFreeByTheDeadlineAndLaterStoresAreWhole) {
  const Doom doom = GetParam();
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    Start(rank,
          absl::StrCat("store-from-1-", rank == doom.rank ? doom.signal : 0));
  }
  Go(1);
  for (uint32_t rank = 0; rank < kRanks; ++rank)
    EXPECT_EQ(DoneBy(rank, 1).tokens, kTokens);

  Go(2);
  EXPECT_EQ(processes_[doom.rank]->Ended(absl::Now() + kForever),
            doom.signal == SIGKILL ? "signal 9" : "stopped");
  Go(3);
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    if (rank == doom.rank) continue;
    const Done mid = DoneBy(rank, 2), after = DoneBy(rank, 3);
    std::cout << "rank " << rank << " was free after " << mid.ms
              << " ms, and after " << after.ms << " ms\n";
    EXPECT_LT(mid.tokens, kTokens);
    EXPECT_LT(absl::Milliseconds(mid.ms), 2 * kPatience + kSlack);
    EXPECT_EQ(after.tokens, 0u);
    EXPECT_LT(absl::Milliseconds(after.ms), 2 * kPatience + kSlack);
    EXPECT_LT(absl::Milliseconds(std::max(mid.call_ms, after.call_ms)),
              kPatience / 2)
        << "the engine does not wait";
  }

  Start(doom.rank, "store-from-4-0");
  uint64_t seed = 3;
  for (bool whole = false; !whole && seed < 10;) {
    // Batches that fail at once would not leave the moment.
    if (seed > 3) absl::SleepFor(kPatience);
    Go(++seed);
    whole = true;
    for (uint32_t rank = 0; rank < kRanks; ++rank)
      whole &= DoneBy(rank, seed).tokens == kTokens;
  }
  EXPECT_LE(seed, 6u)
      << "it takes a batch to hear of it, and a moment to connect";
  const std::vector<uint32_t> tokens = TestTokens(seed, kTokens);
  TestPages pages(Model(), Layout::kTokensFirst, kPageTokens,
                  kTokens / kPageTokens),
      computed = pages;
  const std::vector<uint64_t> ids = pages.PageIds(kTokens, seed);
  computed.Compute(seed, ids, 0, kTokens);
  std::unique_ptr<Client> reader =
      *MakeClient(TestConfig(daemon_.Connect(), Model()));
  ASSERT_TRUE(reader->RegisterPages(pages.cache()).ok());
  auto job = reader->Load({tokens}, 0, kTokens, ids, Soon());
  EXPECT_EQ((*job)->Wait(-1, kLong)->token_count, kTokens);
  EXPECT_TRUE(pages.memory() == computed.memory());
}

INSTANTIATE_TEST_SUITE_P(Dooms, RankDeathTest,
                         ::testing::Values(Doom{"KilledRank", 2, SIGKILL},
                                           Doom{"KilledFirstRank", 0, SIGKILL},
                                           Doom{"StoppedRank", 3, SIGSTOP}),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  unsigned long long first = 0;
  int signal = 0;
  if (argc == 6 &&
      sscanf(argv[2], "store-from-%llu-%d", &first, &signal) == 2) {
    return latentkv::StoreUntilStopped(atoi(argv[3]), signal, first, argv[5]);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
