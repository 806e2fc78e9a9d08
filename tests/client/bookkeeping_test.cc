// The client's small parts that know things: no daemon, no pages.
#include <sstream>

#include "client/failure_log.h"
#include "client/load_progress.h"
#include "client/recent_keys.h"
#include "client/restored_losses.h"
#include "client/staging_budget.h"
#include "core/digest.h"
#include "gtest/gtest.h"
#include "spdlog/sinks/ostream_sink.h"

namespace latentkv {
namespace {

Digest Key(uint32_t i) { return Sha256({AsBytes(std::to_string(i))}); }

std::optional<uint32_t> Now(const LoadProgress& progress, int32_t layer) {
  return progress.Wait(layer, absl::Now());
}

TEST(LoadProgress, LayerIsReadyWhenAllGoodBlocksHaveIt) {
  LoadProgress progress(2, 3);
  progress.LayersDone(0, 0, 3);
  EXPECT_EQ(Now(progress, 0), std::nullopt);
  progress.LayersDone(1, 0, 1);
  EXPECT_EQ(Now(progress, 0), 2u);
  EXPECT_EQ(Now(progress, 1), std::nullopt);
  progress.LayersDone(1, 1, 3);
  EXPECT_EQ(Now(progress, 2), 2u);
  EXPECT_EQ(Now(progress, -1), std::nullopt);
  EXPECT_EQ(progress.Settle(), 2u);
  progress.Finish();
  EXPECT_EQ(Now(progress, -1), 2u);
}

TEST(LoadProgress, FailedBlockTakesThoseBehindItAlong) {
  LoadProgress progress(4, 2);
  progress.LayersDone(3, 0, 2);
  progress.LayersDone(0, 0, 1);
  progress.Fail(1);
  EXPECT_TRUE(progress.Wanted(0));
  EXPECT_FALSE(progress.Wanted(1));
  EXPECT_FALSE(progress.Wanted(3));
  EXPECT_EQ(Now(progress, 0), 1u);
  progress.Fail(2);
  progress.LayersDone(2, 0, 2);
  EXPECT_EQ(Now(progress, 1), std::nullopt);
  progress.Fail(0);
  EXPECT_EQ(Now(progress, 1), 0u);
}

TEST(LoadProgress, WhatNeverCameIsNotGoodInTheEnd) {
  LoadProgress progress(3, 2);
  progress.LayersDone(0, 0, 2);
  progress.LayersDone(1, 0, 1);
  progress.LayersDone(2, 0, 2);
  EXPECT_EQ(progress.Settle(), 1u);
  EXPECT_EQ(Now(progress, 1), 1u);
}

TEST(RestoredLosses, LargestOfThePrefixIsInherited) {
  RestoredLosses losses;
  const std::vector<Digest> keys = {Key(0), Key(1), Key(2)};
  EXPECT_EQ(losses.Inherited(keys), 0);
  losses.Restored(keys[0], 0.5);
  losses.Restored(keys[1], 0.25);
  losses.Restored(Key(9), 8);
  EXPECT_EQ(losses.Inherited(keys), 0.5);
  losses.Computed(keys[0]);
  EXPECT_EQ(losses.Inherited(keys), 0.25);
  losses.Restored(keys[1], 0);
  EXPECT_EQ(losses.Inherited(keys), 0);
}

TEST(RecentKeys, ForgetsWhatWasSetLongestAgo) {
  RecentKeys<int> keys(3);
  for (int i = 0; i < 3; ++i) keys.Set(Key(i), i);
  keys.Set(Key(0), 10);
  EXPECT_EQ(*keys.Find(Key(0)), 10);
  EXPECT_NE(keys.Find(Key(1)), nullptr);
  keys.Set(Key(3), 3);
  EXPECT_EQ(keys.Find(Key(1)), nullptr);
  EXPECT_EQ(*keys.Find(Key(0)), 10);
  keys.Erase(Key(0));
  EXPECT_EQ(keys.Find(Key(0)), nullptr);
}

TEST(StagingBudget, SharesComeBackWhenTheyDie) {
  StagingBudget budget(100);
  StagingBudget::Share a = budget.Take(60);
  EXPECT_TRUE(static_cast<bool>(a));
  EXPECT_FALSE(static_cast<bool>(budget.Take(41)));
  {
    StagingBudget::Share b = budget.Take(40);
    EXPECT_FALSE(static_cast<bool>(budget.Take(1)));
  }
  a.Resize(10);
  StagingBudget::Share c = budget.Take(90);
  EXPECT_TRUE(static_cast<bool>(c));
  a = std::move(c);
  EXPECT_TRUE(static_cast<bool>(budget.Take(10)));
}

class SetClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

TEST(FailureLog, SaysEachKindOnceAMinuteAndHowManyItWithheld) {
  std::ostringstream text;
  SetClock clock;
  FailureLog log(
      std::make_shared<spdlog::logger>(
          "", std::make_shared<spdlog::sinks::ostream_sink_mt>(text)),
      &clock);
  for (int i = 0; i < 5; ++i) log.Warn(Failure::kStore, "first {}");
  log.Warn(Failure::kLookup, "second");
  EXPECT_EQ(text.str().find("first {}"), text.str().rfind("first {}"));
  EXPECT_NE(text.str().find("second"), std::string::npos);
  clock.now += absl::Minutes(2);
  log.Warn(Failure::kStore, "third");
  EXPECT_NE(text.str().find("third (and 4 like it before)"), std::string::npos);
}

}  // namespace
}  // namespace latentkv
