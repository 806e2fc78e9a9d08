// Ranks of one engine, each a thread with a socket of its own, that exchange
// parts of blocks.
#include "transport/rank_mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <deque>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/storage/scratch_folder.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kRanks = 4;
constexpr absl::Duration kPatience = absl::Seconds(1);

Digest IdOf(int number) {
  return Sha256({AsBytes(absl::StrCat("batch ", number))});
}

// What rank `rank` has of a block.
RankPart PartOf(int batch, uint32_t block, uint32_t rank, uint64_t bytes) {
  auto owner = std::make_shared<Bytes>(
      bytes, static_cast<uint8_t>(batch * 50 + block * 5 + rank));
  return {*owner, owner};
}

// What came for the blocks of one rank.
struct Outcome {
  absl::StatusOr<RankAgreement> agreed = absl::UnknownError("not run");
  std::map<std::pair<uint32_t, uint32_t>, Bytes> parts;  // By block and rank.
  absl::Duration took;
};

// Memory that ranks in one process share in the place of a link between
// devices.
struct SharedMemory {
  explicit SharedMemory(uint32_t ranks) : all_here(ranks), sent(ranks) {}
  std::barrier<> all_here;
  std::vector<std::vector<std::vector<RankPart>>> sent;  // [from][to]
  std::atomic<bool> broken{false};
  std::atomic<uint32_t> exchanges{0};
};

class MemoryRankLink final : public RankLink {
 public:
  MemoryRankLink(SharedMemory* memory, uint32_t rank, uint64_t generation,
                 uint64_t bytes_max)
      : memory_(*memory),
        rank_(rank),
        generation_(generation),
        bytes_max_(bytes_max) {}
  uint64_t generation() const override { return generation_; }
  uint64_t bytes_max() const override { return bytes_max_; }
  absl::Status Exchange(absl::Span<const std::vector<RankPart>> to,
                        absl::Span<const uint64_t> from_bytes,
                        const std::function<void(uint32_t, ByteSpan)>& take,
                        absl::Time) override {
    if (memory_.broken) return absl::UnavailableError("the link broke");
    ++memory_.exchanges;
    memory_.sent[rank_] = {to.begin(), to.end()};
    memory_.all_here.arrive_and_wait();
    for (uint32_t from = 0; from < from_bytes.size(); ++from) {
      Bytes bytes;
      for (const RankPart& part : memory_.sent[from][rank_]) {
        bytes.insert(bytes.end(), part.bytes.begin(), part.bytes.end());
      }
      EXPECT_LE(bytes.size(), bytes_max_);
      EXPECT_EQ(bytes.size(), from_bytes[from]);
      if (from != rank_) take(from, bytes);
    }
    memory_.all_here.arrive_and_wait();
    return absl::OkStatus();
  }

 private:
  SharedMemory& memory_;
  const uint32_t rank_;
  const uint64_t generation_, bytes_max_;
};

class RankMeshTest : public ::testing::Test {
 protected:
  RankMeshTest() {
    for (uint32_t rank = 0; rank < kRanks; ++rank) Start(rank);
  }
  void Start(uint32_t rank) {
    absl::StatusOr<std::unique_ptr<RankExchange>> mesh = OpenRankMesh(
        {rank, kRanks, folder_.path() + "/ranks", kPatience, make_link_});
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    if (meshes_.size() <= rank) meshes_.resize(rank + 1);
    meshes_[rank] = *std::move(mesh);
  }
  void StartAll(RankLinkFactory make_link) {
    make_link_ = std::move(make_link);
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      meshes_[rank].reset();
      Start(rank);
    }
  }
  // Rank `rank` has `counts[rank]` blocks of the batch; those with none of
  // `present` do not come.
  std::vector<Outcome> Exchange(
      int number, const std::vector<uint32_t>& counts,
      uint64_t part_bytes = 1000,
      std::vector<bool> present = std::vector<bool>(kRanks, true)) {
    std::vector<Outcome> outcomes(kRanks);
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      if (!present[rank]) continue;
      threads.emplace_back([&, rank] {
        RankBatch batch;
        batch.id = IdOf(number);
        batch.stored = stored_;
        batch.first_owner = number;
        batch.part_bytes = part_bytes;
        batch.loss_inherited = 0.25f * rank;
        if (make_link_ != nullptr) batch.device = 0;
        for (uint32_t block = 0; block < counts[rank]; ++block) {
          batch.parts.push_back(PartOf(number, block, rank, part_bytes));
        }
        const absl::Time began = absl::Now();
        outcomes[rank].agreed = meshes_[rank]->Exchange(
            batch, [&](uint32_t block, uint32_t from, ByteSpan part) {
              EXPECT_TRUE(outcomes[rank]
                              .parts
                              .emplace(std::pair(block, from),
                                       Bytes(part.begin(), part.end()))
                              .second);
            });
        outcomes[rank].took = absl::Now() - began;
      });
    }
    for (std::thread& thread : threads) thread.join();
    return outcomes;
  }
  absl::Time stored_ = absl::Now();  // By the engine.
  // All ranks agreed on `blocks`, and have all parts of theirs.
  void ExpectWhole(int number, const std::vector<Outcome>& outcomes,
                   uint32_t blocks, uint64_t part_bytes = 1000) {
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      ASSERT_TRUE(outcomes[rank].agreed.ok())
          << rank << " " << outcomes[rank].agreed.status();
      EXPECT_EQ(outcomes[rank].agreed->blocks, blocks);
      EXPECT_EQ(outcomes[rank].agreed->loss_inherited, 0.75f);
      size_t own = 0;
      for (uint32_t block = 0; block < blocks; ++block) {
        if ((number + block) % kRanks != rank) continue;
        ++own;
        for (uint32_t from = 0; from < kRanks; ++from) {
          const RankPart expected = PartOf(number, block, from, part_bytes);
          const auto found = outcomes[rank].parts.find({block, from});
          ASSERT_TRUE(found != outcomes[rank].parts.end())
              << rank << " " << block << " " << from;
          EXPECT_TRUE(found->second ==
                      *static_cast<const Bytes*>(expected.owner.get()));
        }
      }
      EXPECT_EQ(outcomes[rank].parts.size(), own * kRanks);
    }
  }

  ScratchFolder folder_;
  RankLinkFactory make_link_;
  std::vector<std::unique_ptr<RankExchange>> meshes_;
};

TEST_F(RankMeshTest,
       WhatFailedIsExchangedByALaterAttemptWhateverCameOfTheFirst) {
  const std::vector<uint32_t> counts(kRanks, 6);
  for (uint32_t absent : {2u, 0u}) {
    std::vector<bool> present(kRanks, true);
    present[absent] = false;
    const std::vector<Outcome> failed =
        Exchange(7 + absent, counts, 1000, present);
    for (uint32_t rank = 0; rank < kRanks; ++rank)
      EXPECT_FALSE(failed[rank].agreed.ok()) << rank;
    // The absent rank was told that the batch was given up; and knows nothing
    // of it, started again.
    stored_ += absl::Seconds(2);
    ExpectWhole(7 + absent, Exchange(7 + absent, counts), 6);
    EXPECT_FALSE(Exchange(20 + absent, counts, 1000, present)[1].agreed.ok());
    meshes_[absent].reset();
    Start(absent);
    stored_ += absl::Seconds(2);
    ExpectWhole(20 + absent, Exchange(20 + absent, counts), 6);
  }
}

TEST_F(RankMeshTest, EveryRankGetsAllPartsOfItsBlocks) {
  ExpectWhole(0, Exchange(0, {9, 9, 9, 9}), 9);
  ExpectWhole(1, Exchange(1, {1, 1, 1, 1}), 1);
  ExpectWhole(2, Exchange(2, {8, 8, 8, 8}, 3 << 20), 8, 3 << 20);
  ExpectWhole(3, Exchange(3, {0, 0, 0, 0}), 0);
}

TEST_F(RankMeshTest, WhatOneRankLacksIsNobodys) {
  ExpectWhole(5, Exchange(5, {9, 6, 9, 7}), 6);
  ExpectWhole(6, Exchange(6, {9, 9, 9, 0}), 0);
}

TEST_F(RankMeshTest,
       ARankThatDoesNotComeCostsOneWaitAndIsThenNotWaitedForUntilItIsBack) {
  for (uint32_t missing : {2u, 0u}) {
    std::vector<bool> present(kRanks, true);
    present[missing] = false;
    meshes_[missing].reset();
    for (int number : {10, 11, 12}) {
      const std::vector<Outcome> outcomes =
          Exchange(100 * missing + number, {5, 5, 5, 5}, 1000, present);
      for (uint32_t rank = 0; rank < kRanks; ++rank) {
        if (rank == missing) continue;
        EXPECT_FALSE(outcomes[rank].agreed.ok());
        EXPECT_THAT(std::string(outcomes[rank].agreed.status().message()),
                    HasSubstr(absl::StrCat("rank ", missing)));
        EXPECT_LT(outcomes[rank].took, number == 10
                                           ? kPatience + absl::Seconds(1)
                                           : absl::Milliseconds(500))
            << number;
      }
    }
    Start(missing);
    // The first batch it is at tells that it is back.
    Exchange(100 * missing + 13, {1, 1, 1, 1});
    absl::SleepFor(absl::Seconds(1));  // A channel that failed connects again.
    ExpectWhole(100 * missing + 14, Exchange(100 * missing + 14, {5, 5, 5, 5}),
                5);
  }
}

TEST_F(RankMeshTest, ARankBehindTheOthersWaitsInVainOnceAndCatchesUp) {
  const std::vector<uint32_t> counts(kRanks, 6);
  const std::vector<bool> others = {true, true, false, true},
                          late = {false, false, true, false};
  for (int number = 30; number < 36; ++number)
    EXPECT_FALSE(Exchange(number, counts, 1000, others)[0].agreed.ok());
  // What it was told of them is too old for it to know that it is of these.
  stored_ += absl::Seconds(5);
  const absl::Time began = absl::Now();
  for (int number = 30; number < 36; ++number)
    EXPECT_FALSE(Exchange(number, counts, 1000, late)[2].agreed.ok());
  EXPECT_LT(absl::Now() - began, 4 * kPatience);
  ExpectWhole(36, Exchange(36, counts), 6);
}

TEST_F(RankMeshTest, ARankWithOtherPartsIsRefused) {
  std::vector<std::thread> threads;
  std::vector<absl::Status> statuses(kRanks);
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const uint64_t bytes = rank == 3 ? 500 : 1000;
      RankBatch batch = {IdOf(0), stored_, 0, {}, bytes, 0, {}};
      for (uint32_t block = 0; block < 4; ++block)
        batch.parts.push_back(PartOf(0, block, rank, bytes));
      statuses[rank] =
          meshes_[rank]
              ->Exchange(batch, [](uint32_t, uint32_t, ByteSpan) {})
              .status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) EXPECT_FALSE(status.ok());
  ExpectWhole(1, Exchange(1, {4, 4, 4, 4}), 4);
}

TEST_F(RankMeshTest, CloseEndsAnExchangeAtOnce) {
  absl::Status status;
  std::thread thread([&] {
    status = meshes_[0]
                 ->Exchange({IdOf(0), stored_, 0, {}, 1000, 0, {}},
                            [](uint32_t, uint32_t, ByteSpan) {})
                 .status();
  });
  absl::SleepFor(absl::Milliseconds(50));
  const absl::Time began = absl::Now();
  meshes_[0]->Close();
  thread.join();
  EXPECT_LT(absl::Now() - began, kPatience / 2);
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(RankMeshTest, PartsGoOverALinkThatAllRanksHave) {
  SharedMemory memory(kRanks);
  StartAll([&](uint32_t device, const GroupPlace& place, const RankJoin& join,
               absl::Time) -> absl::StatusOr<std::unique_ptr<RankLink>> {
    EXPECT_EQ(device, 0u);
    absl::StatusOr<Meeting> meeting =
        join(place.rank == 0 ? Bytes{1} : Bytes{});
    if (!meeting.ok()) return meeting.status();
    return std::make_unique<MemoryRankLink>(&memory, place.rank,
                                            meeting->generation, 2500);
  });
  ExpectWhole(0, Exchange(0, {9, 9, 9, 9}), 9);
  EXPECT_EQ(meshes_[0]->batches_over_link(), 0u)
      << "it is made before the second";
  ExpectWhole(1, Exchange(1, {21, 21, 21, 21}), 21);
  EXPECT_EQ(memory.exchanges, 3 * kRanks) << "two blocks of each rank fit";
  for (const auto& mesh : meshes_) EXPECT_EQ(mesh->batches_over_link(), 1u);
  // A part that no message has room for.
  ExpectWhole(2, Exchange(2, {5, 5, 5, 5}, 3000), 5, 3000);
  EXPECT_EQ(memory.exchanges, 3 * kRanks);

  memory.broken = true;
  for (const Outcome& outcome : Exchange(3, {5, 5, 5, 5}))
    EXPECT_FALSE(outcome.agreed.ok());
  ExpectWhole(4, Exchange(4, {5, 5, 5, 5}), 5);
  EXPECT_FALSE(meshes_[1]->link_status().ok());
}

TEST_F(RankMeshTest, WithoutALinkForEveryRankPartsGoAsMessages) {
  SharedMemory memory(kRanks);
  StartAll([&](uint32_t, const GroupPlace& place, const RankJoin& join,
               absl::Time) -> absl::StatusOr<std::unique_ptr<RankLink>> {
    absl::StatusOr<Meeting> meeting =
        join(place.rank == 0 ? Bytes{1} : Bytes{});
    if (!meeting.ok()) return meeting.status();
    if (place.rank == 2)
      return absl::FailedPreconditionError("no memory for it");
    return std::make_unique<MemoryRankLink>(&memory, place.rank,
                                            meeting->generation, 2500);
  });
  for (int number : {0, 1, 2})
    ExpectWhole(number, Exchange(number, {5, 5, 5, 5}), 5);
  EXPECT_EQ(memory.exchanges, 0u);
}

TEST(RankMesh, SaysWhatIsWrongWithItsOptions) {
  const auto open = [](uint32_t rank, uint32_t ranks,
                       const std::string& meeting) {
    return OpenRankMesh({rank, ranks, meeting, kPatience, nullptr}).status();
  };
  const std::string path = ::testing::TempDir() + "ranks";
  EXPECT_TRUE(absl::IsInvalidArgument(open(0, 1, path)));
  EXPECT_TRUE(absl::IsInvalidArgument(open(4, 4, path)));
  EXPECT_TRUE(absl::IsInvalidArgument(open(0, 100, path)));
  EXPECT_TRUE(absl::IsInvalidArgument(open(0, 4, "")));
  EXPECT_TRUE(absl::IsUnavailable(open(0, 2, "/no such folder/ranks")));
}

}  // namespace
}  // namespace latentkv
