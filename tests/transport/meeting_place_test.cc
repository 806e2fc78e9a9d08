// Ranks that meet over real gRPC.
#include "transport/meeting_place.h"

#include <grpcpp/grpcpp.h>

#include <future>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/scratch_folder.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Answer = std::future<absl::StatusOr<Meeting>>;

const Bytes kId(128, 'S');  // "SSS..." would show in a message.

class MeetingPlaceTest : public ::testing::Test {
 protected:
  MeetingPlaceTest() {
    server_ = *PeerServer::Start("unix:" + folder_.path() + "/peer", &service_);
    client_ = *PeerClient::Open(server_->address());
  }
  Answer Come(uint32_t rank, uint32_t ranks,
              absl::Duration patience = absl::Seconds(30),
              const Bytes& id = kId, CancelToken* cancel = nullptr) {
    return std::async(std::launch::async, [=, this] {
      return client_->Join({"tp", rank, ranks}, rank == 0 ? id : Bytes(),
                           CallLimits::In(patience, cancel));
    });
  }

  ScratchFolder folder_;
  PeerService service_;
  std::unique_ptr<PeerServer> server_;
  std::unique_ptr<PeerClient> client_;
};

TEST_F(MeetingPlaceTest, AllRanksAreToldTheSame) {
  std::vector<Answer> answers;
  for (uint32_t rank : {3, 1, 0, 2}) answers.push_back(Come(rank, 4));
  uint64_t generation = 0;
  for (Answer& answer : answers) {
    const absl::StatusOr<Meeting> meeting = answer.get();
    ASSERT_TRUE(meeting.ok()) << meeting.status();
    EXPECT_EQ(meeting->id, kId);
    if (generation == 0) generation = meeting->generation;
    EXPECT_EQ(meeting->generation, generation);
  }
}

TEST_F(MeetingPlaceTest, GenerationsRiseAlsoWhenThePlaceIsStartedAgain) {
  uint64_t last = 0;
  for (int meeting = 0; meeting < 4; ++meeting) {
    MeetingPlace place;
    for (int again = 0; again < 2; ++again) {
      auto other = std::async(std::launch::async, [&] {
        return place.Join({"g", 1, 2}, {}, absl::Now() + absl::Seconds(30),
                          [] { return false; });
      });
      const auto met =
          place.Join({"g", 0, 2}, kId, absl::Now() + absl::Seconds(30),
                     [] { return false; });
      ASSERT_TRUE(met.ok() && other.get().ok());
      EXPECT_GT(met->generation, last);
      last = met->generation;
    }
  }
}

TEST_F(MeetingPlaceTest, ARankThatDoesNotComeLeavesTheOthersAtTheirDeadline) {
  const absl::Time start = absl::Now();
  Answer waiting = Come(0, 3, absl::Milliseconds(300));
  const absl::Status status = waiting.get().status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("SSSS")));
}

TEST_F(MeetingPlaceTest, ARankStartedAgainTakesThePlaceOfTheOneBefore) {
  Answer first = Come(0, 2, absl::Seconds(30), Bytes(128, 'x'));
  absl::SleepFor(absl::Milliseconds(100));
  Answer second = Come(0, 2);
  EXPECT_TRUE(absl::IsAborted(first.get().status()));
  EXPECT_EQ(Come(1, 2).get()->id, kId);
  EXPECT_EQ(second.get()->id, kId);
}

TEST_F(MeetingPlaceTest, ARankThatWasCancelledIsNotMet) {
  CancelToken cancel;
  Answer gone = Come(0, 2, absl::Seconds(30), kId, &cancel);
  absl::SleepFor(absl::Milliseconds(100));
  cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(gone.get().status()));
  absl::SleepFor(absl::Milliseconds(300));  // The server asks every 50.
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      Come(1, 2, absl::Milliseconds(200)).get().status()));
}

TEST_F(MeetingPlaceTest, WhatIsNoPlaceIsRefused) {
  const auto refused = [&](GroupPlace place, const Bytes& id) {
    // On the server as well, which does not trust the client's check.
    v1::JoinRequest request;
    request.set_group(place.group);
    request.set_rank(place.rank);
    request.set_ranks(place.ranks);
    request.set_id(id.data(), id.size());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::seconds(10));
    v1::JoinResponse response;
    auto stub = v1::Peer::NewStub(grpc::CreateChannel(
        server_->address(), grpc::InsecureChannelCredentials()));
    return absl::IsInvalidArgument(
               client_->Join(place, id, CallLimits::In(absl::Seconds(10)))
                   .status()) &&
           stub->Join(&context, request, &response).error_code() ==
               grpc::StatusCode::INVALID_ARGUMENT;
  };
  EXPECT_TRUE(refused({"", 0, 2}, kId));
  EXPECT_TRUE(refused({std::string(257, 'g'), 0, 2}, kId));
  EXPECT_TRUE(refused({"g", 0, 1}, kId));
  EXPECT_TRUE(refused({"g", 2, 2}, {}));
  EXPECT_TRUE(refused({"g", 0, 65}, kId));
  EXPECT_TRUE(refused({"g", 0, 2}, {}));
  EXPECT_TRUE(refused({"g", 1, 2}, kId));
  EXPECT_TRUE(refused({"g", 0, 2}, Bytes(129, 1)));
}

TEST_F(MeetingPlaceTest, TwoWhoDisagreeOnTheSizeOfTheGroupDoNotMeet) {
  Answer first = Come(0, 2, absl::Seconds(1));
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsInvalidArgument(Come(1, 3).get().status()));
  EXPECT_FALSE(first.get().ok());
}

TEST_F(MeetingPlaceTest, ThoseWhoWaitAreBounded) {
  MeetingPlace place;
  std::atomic<bool> gone = false;
  std::vector<Answer> waiting;
  for (uint32_t i = 0; i < kJoinsMax; ++i) {
    waiting.push_back(std::async(std::launch::async, [&, i] {
      absl::StatusOr<Meeting> answer =
          absl::ResourceExhaustedError("not tried");
      // While the one below is in the last place.
      while (absl::IsResourceExhausted(answer.status())) {
        absl::SleepFor(absl::Milliseconds(2));
        answer =
            place.Join({absl::StrCat("g", i), 0, 2}, kId,
                       absl::InfiniteFuture(), [&] { return gone.load(); });
      }
      return answer;
    }));
  }
  absl::Status status;
  for (int i = 0; i < 100 && !absl::IsResourceExhausted(status); ++i) {
    absl::SleepFor(absl::Milliseconds(20));  // Whoever was refused goes first.
    status =
        place
            .Join({"more", 0, 2}, kId, absl::Now() + absl::Milliseconds(20),
                  [] { return false; })
            .status();
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  gone = true;
  for (Answer& answer : waiting)
    EXPECT_TRUE(absl::IsCancelled(answer.get().status()));
}

}  // namespace
}  // namespace latentkv
