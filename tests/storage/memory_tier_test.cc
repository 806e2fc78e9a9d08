#include "storage/memory_tier.h"

#include "gtest/gtest.h"

namespace latentkv {
namespace {

std::shared_ptr<const Bytes> Frame(size_t bytes) { return std::make_shared<const Bytes>(bytes); }

TEST(MemoryTierTest, StaysWithinItsBytesAndDropsTheOneUsedLongestAgo) {
  MemoryTier tier(300);
  tier.Insert(1, Frame(100));
  tier.Insert(2, Frame(100));
  tier.Insert(3, Frame(100));
  EXPECT_NE(tier.Find(1), nullptr);
  tier.Insert(4, Frame(100));
  EXPECT_EQ(tier.bytes(), 300u);
  EXPECT_EQ(tier.Find(2), nullptr);
  EXPECT_NE(tier.Find(1), nullptr);
  EXPECT_NE(tier.Find(4), nullptr);
}

TEST(MemoryTierTest, LeavesAloneWhatIsThereWhenAFrameIsLargerThanTheTier) {
  MemoryTier tier(100);
  tier.Insert(1, Frame(100));
  tier.Insert(2, Frame(101));
  EXPECT_NE(tier.Find(1), nullptr);
  EXPECT_EQ(tier.Find(2), nullptr);
}

TEST(MemoryTierTest, FramesInUseOutliveTheirPlace) {
  MemoryTier tier(100);
  tier.Insert(1, Frame(100));
  std::shared_ptr<const Bytes> held = tier.Find(1);
  tier.Erase(1);
  EXPECT_EQ(tier.bytes(), 0u);
  EXPECT_EQ(held->size(), 100u);
}

TEST(MemoryTierTest, InsertingAgainCountsOnce) {
  MemoryTier tier(300);
  tier.Insert(1, Frame(100));
  tier.Insert(1, Frame(200));
  EXPECT_EQ(tier.bytes(), 200u);
}

}  // namespace
}  // namespace latentkv
