// Ranks of one engine, each a client with pages of its heads alone: what
// several wrote, any number restores, and what is stored is what one rank
// writes.
#include <deque>
#include <sstream>
#include <thread>

#include "core/limits.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "tests/client/client_fixture.h"
#include "tests/client/fake_device.h"
#include "tests/client/wrapped_channel.h"
#include "tests/storage/scratch_folder.h"
#include "transport/rank_mesh.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kHeads = 4, kBlocks = 19, kPageTokens = 32;
constexpr uint64_t kTokens = kBlocks * kBlockTokens,
                   kPages = kTokens / kPageTokens;
constexpr absl::Duration kPatience = absl::Seconds(1);

// A client with its pages, in the one layout for all.
struct Rank {
  std::unique_ptr<TestPages> pages;
  std::unique_ptr<Client> client;
};

class TensorParallelTest : public ClientTest {
 protected:
  // Ranks against `daemon`, none of which has a token yet.
  std::vector<Rank> OpenRanks(
      uint32_t ranks, const LocalDaemon& daemon,
      std::shared_ptr<const Basis> basis = nullptr,
      std::function<void(uint32_t rank, ClientConfig*)> change = nullptr) {
    std::vector<Rank> opened;
    const std::string meeting =
        absl::StrCat(folder_.path(), "/engine-", ++engines_);
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      ClientConfig config = TestConfig(daemon.Connect(), model_, basis);
      config.logger = std::make_shared<spdlog::logger>(
          "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log_));
      HeadShare share = *HeadShare::Create(model_, rank, ranks);
      opened.push_back({std::make_unique<TestPages>(share.held(), layout_,
                                                    kPageTokens, kPages),
                        nullptr});
      config.share = std::make_shared<const HeadShare>(std::move(share));
      if (ranks > 1)
        config.ranks =
            *OpenRankMesh({rank, ranks, meeting, kPatience, nullptr});
      if (change != nullptr) change(rank, &config);
      opened.back().client =
          ClientTest::Open(std::move(config), opened.back().pages.get());
    }
    return opened;
  }
  uint32_t FirstHead(uint32_t rank, uint32_t ranks) const {
    return HeadsOfRank(model_, rank, ranks).value()[0].first;
  }
  // Every rank's engine has computed what its heads are of `whole`.
  void Compute(const TestPages& whole, std::vector<Rank>* ranks) const {
    for (uint32_t r = 0; r < ranks->size(); ++r)
      (*ranks)[r].pages->TakeHeads(whole, FirstHead(r, ranks->size()));
  }
  // All ranks at once; what each says.
  template <typename Act>
  static std::vector<TransferResult> OnAll(std::vector<Rank>* ranks,
                                           const Act& act) {
    std::vector<TransferResult> results(ranks->size());
    std::vector<std::thread> threads;
    for (size_t r = 0; r < ranks->size(); ++r)
      threads.emplace_back([&, r] { results[r] = act(&(*ranks)[r]); });
    for (std::thread& thread : threads) thread.join();
    return results;
  }
  std::vector<TransferResult> Store(std::vector<Rank>* ranks, uint64_t first,
                                    uint64_t count) {
    return OnAll(ranks, [&](Rank* rank) {
      auto job = rank->client->Store({TestTokens(kSeed, first + count)}, first,
                                     count, ids_);
      return *(*job)->Wait(-1, kLong);
    });
  }
  // A prompt in two steps, and then block after block, as an engine decodes.
  void StoreConversation(std::vector<Rank>* ranks) {
    uint64_t first = 0;
    for (const uint64_t blocks : {9, 5, 1, 1, 1, 1, 1}) {
      for (const TransferResult& result :
           Store(ranks, first * kBlockTokens, blocks * kBlockTokens)) {
        EXPECT_EQ(result.token_count, blocks * kBlockTokens) << log_.str();
      }
      first += blocks;
    }
    ASSERT_EQ(first, kBlocks);
  }
  std::vector<TransferResult> Restore(std::vector<Rank>* ranks,
                                      uint64_t count = kTokens) {
    return OnAll(ranks, [&](Rank* rank) {
      rank->pages->Poison();
      auto job = rank->client->Load({TestTokens(kSeed, count)}, 0, count, ids_,
                                    Soon());
      return *(*job)->Wait(-1, kLong);
    });
  }
  // The pages of every rank hold what `whole` does of its heads, byte for byte.
  void ExpectSamePages(const std::vector<Rank>& ranks, const TestPages& whole,
                       const std::string& what) {
    for (uint32_t r = 0; r < ranks.size(); ++r) {
      const HeadShare share = *HeadShare::Create(model_, r, ranks.size());
      TestPages expected(share.held(), layout_, kPageTokens, kPages);
      expected.TakeHeads(whole, FirstHead(r, ranks.size()));
      EXPECT_TRUE(ranks[r].pages->memory() == expected.memory())
          << what << ": rank " << r << " of " << ranks.size();
    }
  }
  // The frames that a daemon has of the conversation, in order.
  std::vector<Bytes> Frames(const LocalDaemon& daemon,
                            const std::shared_ptr<const Basis>& basis) const {
    const ChainScope scope = TestConfig(nullptr, model_).scope;
    const std::vector<Digest> keys =
        ChainKeys(scope, TestTokens(kSeed, kTokens), {}).value();
    PrefixQuery query = {keys, true, {}, 1e9f, 0};
    if (basis != nullptr) query.accept_bases = {basis->digest()};
    std::vector<Bytes> frames;
    const PrefixHit hit = daemon.store()->FindPrefix(query).value();
    for (const RecordEntry& record : hit.records) {
      absl::StatusOr<SharedBytes> frame = daemon.store()->Get(record.id);
      EXPECT_TRUE(frame.ok()) << frame.status();
      if (frame.ok())
        frames.emplace_back(frame->bytes.begin(), frame->bytes.end());
    }
    return frames;
  }

  static constexpr uint64_t kSeed = 11;
  const Geometry model_ = SmallGeometry(4, kHeads, 8);
  Layout layout_ = Layout::kHeadsFirst;
  const std::vector<uint64_t> ids_ =
      TestPages(model_, layout_, kPageTokens, kPages).PageIds(kTokens, kSeed);
  ScratchFolder folder_;
  LocalDaemon other_daemon_;
  std::ostringstream log_;
  int engines_ = 0;
};

TEST_F(TensorParallelTest,
       WhatFourRanksWroteOneAndTwoRanksRestoreToTheSamePages) {
  for (const bool exact : {true, false}) {
    for (const Layout layout : kLayouts) {
      layout_ = layout;
      other_daemon_.Stop();
      std::filesystem::remove_all(other_daemon_.data());
      other_daemon_.Start();
      daemon_.Stop();
      std::filesystem::remove_all(daemon_.data());
      daemon_.Start();
      const auto basis = exact ? nullptr : PlainBasis(model_, 0, 0.0625, 2);
      TestPages computed(model_, layout, kPageTokens, kPages);
      computed.Compute(kSeed, ids_, 0, kTokens);

      std::vector<Rank> writer = OpenRanks(1, daemon_, basis),
                        writers = OpenRanks(4, other_daemon_, basis);
      Compute(computed, &writer);
      Compute(computed, &writers);
      StoreConversation(&writer);
      StoreConversation(&writers);
      const std::vector<Bytes> frames = Frames(daemon_, basis);
      ASSERT_EQ(frames.size(), kBlocks);
      EXPECT_TRUE(frames == Frames(other_daemon_, basis))
          << "the stored form does not know who wrote it";
      uint64_t stored = 0;
      for (const Rank& rank : writers) {
        stored += rank.client->Stats().stored_blocks;
        EXPECT_NEAR(rank.client->Stats().stored_blocks, kBlocks / 4.0, 1)
            << "every rank does its share";
      }
      EXPECT_EQ(stored, kBlocks);

      EXPECT_EQ(Restore(&writer)[0].token_count, kTokens);
      const TestPages& expected = *writer[0].pages;
      if (exact) {
        EXPECT_TRUE(expected.memory() == computed.memory());
      }
      for (const uint32_t ranks : {1, 2, 4}) {
        std::vector<Rank> readers = OpenRanks(ranks, other_daemon_, basis);
        for (const TransferResult& result : Restore(&readers))
          EXPECT_EQ(result.token_count, kTokens) << log_.str();
        ExpectSamePages(readers, expected, exact ? "exact" : "basis");
      }
    }
  }
  EXPECT_EQ(log_.str(), "");
}

// The control: what is compared above sees one rank's heads in the place of
// another's.
TEST_F(TensorParallelTest, RanksWithOneAnothersHeadsRestoreOtherPages) {
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> writers = OpenRanks(4, daemon_);
  Compute(computed, &writers);
  writers[1].pages->TakeHeads(computed, FirstHead(2, 4));
  writers[2].pages->TakeHeads(computed, FirstHead(1, 4));
  StoreConversation(&writers);
  std::vector<Rank> reader = OpenRanks(1, daemon_),
                    readers = OpenRanks(2, daemon_);
  EXPECT_EQ(Restore(&reader)[0].token_count, kTokens);
  EXPECT_FALSE(reader[0].pages->memory() == computed.memory());
  Restore(&readers);
  TestPages second_half(HeadShare::Create(model_, 1, 2)->held(), layout_,
                        kPageTokens, kPages);
  second_half.TakeHeads(computed, FirstHead(1, 2));
  EXPECT_FALSE(readers[1].pages->memory() == second_half.memory());
}

TEST_F(TensorParallelTest, ALossThatOneRankKnowsOfIsInheritedByWhatAllStore) {
  const auto basis = PlainBasis(model_, 0, 0.0625, 2);
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> writers = OpenRanks(2, daemon_, basis);
  Compute(computed, &writers);
  Store(&writers, 0, 4 * kBlockTokens);
  std::vector<Rank> engine = OpenRanks(2, daemon_, basis);
  // An engine whose second rank could not load recomputes on it, and goes on.
  auto job =
      engine[0].client->Load({TestTokens(kSeed, 256)}, 0, 256, ids_, Soon());
  const double restored = (*job)->Wait(-1, kLong)->loss_chain;
  ASSERT_GT(restored, 0);
  Compute(computed, &engine);
  const std::vector<TransferResult> stored =
      Store(&engine, 256, 2 * kBlockTokens);
  for (const TransferResult& result : stored) {
    EXPECT_EQ(result.token_count, 2 * kBlockTokens);
    EXPECT_GT(result.loss_chain, restored) << "of the block that it sent";
  }
}

TEST_F(TensorParallelTest, WhatOneRankHasNoRoomForNobodyStores) {
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  // Room for six parts, and its two of the first six blocks whole.
  const uint64_t part = RawBytes(model_, kBlockTokens) / 4;
  std::vector<Rank> ranks =
      OpenRanks(4, daemon_, nullptr, [&](uint32_t rank, ClientConfig* config) {
        if (rank == 1) config->staging_bytes_max = 6 * part + 2 * 4 * part;
      });
  Compute(computed, &ranks);
  for (const TransferResult& result : Store(&ranks, 0, 9 * kBlockTokens)) {
    EXPECT_EQ(result.token_count, 6 * kBlockTokens) << log_.str();
  }
  EXPECT_EQ(Match(ranks[0].client.get(), kSeed, 9 * kBlockTokens),
            6 * kBlockTokens);
  // What comes behind the hole is dropped, also by those that had room; and
  // what fills it is stored.
  for (const TransferResult& result :
       Store(&ranks, 9 * kBlockTokens, kBlockTokens))
    EXPECT_EQ(result.token_count, 0u);
  uint64_t dropped = 0;
  for (const Rank& rank : ranks) dropped += rank.client->Stats().dropped_blocks;
  EXPECT_EQ(dropped, 4u);
  for (const TransferResult& result :
       Store(&ranks, 6 * kBlockTokens, 4 * kBlockTokens)) {
    EXPECT_EQ(result.token_count, 4 * kBlockTokens) << log_.str();
  }
  EXPECT_EQ(Match(ranks[0].client.get(), kSeed, 10 * kBlockTokens),
            10 * kBlockTokens);
}

TEST_F(TensorParallelTest, WhatOneRankLacksNobodyStoresAndNobodyWaitsFor) {
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> ranks = OpenRanks(4, daemon_);
  Compute(computed, &ranks);
  const absl::Time began = absl::Now();
  const auto store = [&](bool one_lacks) {
    return OnAll(&ranks, [&](Rank* rank) {
      const bool lacks = one_lacks && rank == &ranks[2];
      auto job = rank->client->Store({TestTokens(kSeed, 320)}, 0, 320,
                                     lacks ? std::vector<uint64_t>() : ids_);
      return *(*job)->Wait(-1, kLong);
    });
  };
  for (const TransferResult& result : store(true))
    EXPECT_EQ(result.token_count, 0u);
  EXPECT_EQ(Match(ranks[0].client.get(), kSeed, 320), 0u);
  for (const TransferResult& result : store(false))
    EXPECT_EQ(result.token_count, 320u) << log_.str();
  EXPECT_LT(absl::Now() - began, kPatience);
  std::vector<Rank> alone = OpenRanks(1, daemon_);
  EXPECT_TRUE(absl::IsInvalidArgument(
      alone[0].client->Store({TestTokens(kSeed, 320)}, 0, 320, {}).status()));
}

TEST_F(TensorParallelTest,
       ARankThatIsGoneCostsItsBlocksAndNoneOfTheEnginesTime) {
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> ranks = OpenRanks(4, daemon_);
  Compute(computed, &ranks);
  ranks.pop_back();
  const absl::Time began = absl::Now();
  std::vector<std::unique_ptr<Job>> jobs;
  for (Rank& rank : ranks)
    jobs.push_back(*rank.client->Store({TestTokens(kSeed, 512)}, 0, 512, ids_));
  EXPECT_LT(absl::Now() - began, kPatience / 2) << "storing does not wait";
  for (const auto& job : jobs)
    EXPECT_EQ((*job->Wait(-1, kLong)).token_count, 0u);
  EXPECT_LT(absl::Now() - began, kPatience + absl::Seconds(2));
  for (Rank& rank : ranks)
    EXPECT_TRUE(rank.client->Flush(absl::ZeroDuration()).ok());
  EXPECT_THAT(log_.str(), HasSubstr("rank 3"));
}

TEST_F(TensorParallelTest, ClosingTheClientEndsWhatWaitsForOthers) {
  std::vector<Rank> ranks = OpenRanks(4, daemon_);
  auto job = *ranks[1].client->Store({TestTokens(kSeed, 512)}, 0, 512, ids_);
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(ranks[1].client->Flush(absl::Milliseconds(20))));
  const absl::Time began = absl::Now();
  ranks[1].client.reset();
  EXPECT_LT(absl::Now() - began, kPatience / 2);
  EXPECT_EQ(job->Wait(-1, kLong)->token_count, 0u);
}

// Pages on a device, and sections of a basis that it restores itself.
TEST_F(TensorParallelTest, RanksOnDevicesWriteAndRestoreTheSame) {
  const auto basis = PlainBasis(model_, 0, 0.0625, 2);
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> writer = OpenRanks(1, daemon_, basis);
  Compute(computed, &writer);
  StoreConversation(&writer);
  std::deque<FakeDevices> devices;
  const auto open = [&](uint32_t ranks) {
    const size_t first = devices.size();
    devices.resize(first + ranks);
    std::vector<Rank> opened = OpenRanks(
        ranks, other_daemon_, basis, [&](uint32_t rank, ClientConfig* config) {
          devices[first + rank].basis = basis.get();
          config->devices = &devices[first + rank];
        });
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const Bytes& layer : opened[r].pages->memory())
        devices[first + r].Hold(layer.data(), layer.size());
      EXPECT_TRUE(
          opened[r].client->RegisterPages(opened[r].pages->cache()).ok());
    }
    return opened;
  };
  std::vector<Rank> writers = open(4);
  Compute(computed, &writers);
  StoreConversation(&writers);
  EXPECT_TRUE(Frames(daemon_, basis) == Frames(other_daemon_, basis));
  Restore(&writer);
  std::vector<Rank> readers = open(2);
  for (const TransferResult& result : Restore(&readers))
    EXPECT_EQ(result.token_count, kTokens) << log_.str();
  EXPECT_GT(devices.back().restored_groups, 0);
  ExpectSamePages(readers, *writer[0].pages, "on devices");
}

TEST_F(TensorParallelTest, OptionsThatCannotBeAreRefused) {
  ClientOptions options;
  options.address = "127.0.0.1:1";
  options.scope.model = Sha256({AsBytes("model")});
  options.geometry = model_;
  const auto error = [&](uint32_t rank, uint32_t ranks,
                         const std::string& meeting) {
    options.tensor_parallel = {rank, ranks, meeting};
    return Client::Open(options).status();
  };
  const std::string meeting = folder_.path() + "/refused";
  EXPECT_THAT(std::string(error(0, 3, meeting).message()),
              HasSubstr("4 KV heads, which 3 ranks cannot share"));
  EXPECT_TRUE(absl::IsInvalidArgument(error(2, 2, meeting)));
  EXPECT_TRUE(absl::IsInvalidArgument(error(0, 0, meeting)));
  EXPECT_THAT(std::string(error(0, 2, "").message()),
              HasSubstr("a path at which they meet"));
  EXPECT_TRUE(error(0, 2, meeting).ok());
  EXPECT_TRUE(error(0, 1, "").ok());
}

// Eight ranks of a model with four heads: pairs of ranks hold the same head.
TEST_F(TensorParallelTest, HeadsThatSeveralRanksHoldAreStoredOnce) {
  TestPages computed(model_, layout_, kPageTokens, kPages);
  computed.Compute(kSeed, ids_, 0, kTokens);
  std::vector<Rank> writers = OpenRanks(8, daemon_);
  Compute(computed, &writers);
  StoreConversation(&writers);
  std::vector<Rank> reader = OpenRanks(1, daemon_),
                    readers = OpenRanks(8, daemon_);
  EXPECT_EQ(Restore(&reader)[0].token_count, kTokens);
  EXPECT_TRUE(reader[0].pages->memory() == computed.memory());
  Restore(&readers);
  ExpectSamePages(readers, computed, "replicated");
}

}  // namespace
}  // namespace latentkv
