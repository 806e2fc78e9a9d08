#include "client/circuit_breaker.h"

#include "gtest/gtest.h"
#include "spdlog/sinks/null_sink.h"

namespace latentkv {
namespace {

class SetClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

class CircuitBreakerTest : public ::testing::Test {
 protected:
  void Report(const absl::Status& status,
              absl::Duration took = absl::ZeroDuration()) {
    auto attempt = breaker_.Enter();
    ASSERT_TRUE(static_cast<bool>(attempt));
    clock_.now += took;
    attempt.Report(status);
  }
  // How long no call goes.
  absl::Duration Pause() {
    const absl::Time before = clock_.now;
    while (breaker_.refuses()) clock_.now += absl::Milliseconds(10);
    return clock_.now - before;
  }

  const absl::Status away_ = absl::UnavailableError("refused");
  SetClock clock_;
  FailureLog log_{std::make_shared<spdlog::logger>(
                      "", std::make_shared<spdlog::sinks::null_sink_mt>()),
                  &clock_};
  CircuitBreaker breaker_{&clock_, &log_};
};

TEST_F(CircuitBreakerTest, FailsFastUntilAPauseIsOver) {
  EXPECT_FALSE(breaker_.refuses());
  Report(away_);
  EXPECT_TRUE(breaker_.open());
  EXPECT_TRUE(breaker_.refuses());
  EXPECT_FALSE(static_cast<bool>(breaker_.Enter()));
  EXPECT_GT(Pause(), absl::ZeroDuration());
  Report(absl::OkStatus());
  EXPECT_FALSE(breaker_.open());
}

TEST_F(CircuitBreakerTest, OneProbeAtATime) {
  Report(away_);
  Pause();
  auto probe = breaker_.Enter();
  EXPECT_TRUE(static_cast<bool>(probe));
  EXPECT_TRUE(breaker_.refuses());
  EXPECT_FALSE(static_cast<bool>(breaker_.Enter()));
  probe.Report(absl::OkStatus());
  EXPECT_TRUE(static_cast<bool>(breaker_.Enter()));
}

TEST_F(CircuitBreakerTest, ProbeThatCameToNothingLetsTheNextOneGo) {
  Report(away_);
  Pause();
  { auto probe = breaker_.Enter(); }
  Report(absl::CancelledError(""));
  EXPECT_TRUE(breaker_.open());
  EXPECT_FALSE(breaker_.refuses());
}

TEST_F(CircuitBreakerTest, PausesGrowToABoundAndBeginAnewAfterSuccess) {
  Report(away_);
  absl::Duration last = Pause(), longest;
  const absl::Duration first = last;
  for (int i = 0; i < 12; ++i) {
    Report(away_);
    const absl::Duration pause = Pause();
    EXPECT_GE(pause, last);
    last = longest = pause;
  }
  EXPECT_GT(longest, 4 * first);
  EXPECT_LE(longest, absl::Seconds(10));
  Report(absl::OkStatus());
  Report(away_);
  EXPECT_EQ(Pause(), first);
}

TEST_F(CircuitBreakerTest, CallsThatWereUnderWayDoNotLengthenThePause) {
  auto a = breaker_.Enter(), b = breaker_.Enter();
  a.Report(away_);
  clock_.now += absl::Milliseconds(100);
  b.Report(away_);
  EXPECT_LE(Pause(), absl::Milliseconds(100));
}

TEST_F(CircuitBreakerTest, AnswersOfTheDaemonKeepItClosed) {
  for (const absl::Status& status :
       {absl::OkStatus(), absl::NotFoundError(""),
        absl::ResourceExhaustedError(""), absl::DataLossError(""),
        absl::InvalidArgumentError(""), absl::CancelledError("")}) {
    Report(status);
    EXPECT_FALSE(breaker_.open()) << status;
  }
}

TEST_F(CircuitBreakerTest, DeadlineCountsIfTheCallHadTime) {
  Report(absl::DeadlineExceededError(""), absl::Milliseconds(1));
  EXPECT_FALSE(breaker_.open());
  Report(absl::DeadlineExceededError(""), absl::Seconds(1));
  EXPECT_TRUE(breaker_.open());
}

}  // namespace
}  // namespace latentkv
