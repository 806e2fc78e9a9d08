#include "storage/memory_tier.h"

#include "gtest/gtest.h"

namespace latentkv {
namespace {

SharedBytes Frame(size_t bytes) {
  auto frame = std::make_shared<const Bytes>(bytes);
  return {*frame, frame};
}

bool Has(MemoryTier* tier, uint64_t sequence) {
  return tier->Find(sequence).owner != nullptr;
}

TEST(MemoryTierTest, StaysWithinItsBytesAndDropsTheOneUsedLongestAgo) {
  MemoryTier tier(300);
  tier.Insert(1, Frame(100));
  tier.Insert(2, Frame(100));
  tier.Insert(3, Frame(100));
  EXPECT_TRUE(Has(&tier, 1));
  tier.Insert(4, Frame(100));
  EXPECT_EQ(tier.bytes(), 300u);
  EXPECT_FALSE(Has(&tier, 2));
  EXPECT_TRUE(Has(&tier, 1));
  EXPECT_TRUE(Has(&tier, 4));
}

TEST(MemoryTierTest, LeavesAloneWhatIsThereWhenAFrameIsLargerThanTheTier) {
  MemoryTier tier(100);
  tier.Insert(1, Frame(100));
  tier.Insert(2, Frame(101));
  EXPECT_TRUE(Has(&tier, 1));
  EXPECT_FALSE(Has(&tier, 2));
}

TEST(MemoryTierTest, FramesInUseOutliveTheirPlace) {
  MemoryTier tier(100);
  tier.Insert(1, Frame(100));
  SharedBytes held = tier.Find(1);
  tier.Erase(1);
  EXPECT_EQ(tier.bytes(), 0u);
  EXPECT_EQ(held.bytes, ByteSpan(Bytes(100)));
}

TEST(MemoryTierTest, InsertingAgainCountsOnce) {
  MemoryTier tier(300);
  tier.Insert(1, Frame(100));
  tier.Insert(1, Frame(200));
  EXPECT_EQ(tier.bytes(), 200u);
}

}  // namespace
}  // namespace latentkv
