// A communicator keeps its deadlines whatever NCCL does (fake_nccl.h).
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <thread>

#include "gtest/gtest.h"
#include "tests/transport/fake_nccl.h"
#include "transport/nccl/communicator.h"

namespace {
latentkv::FakeNccl* used = nullptr;
}

// In the place of CUDA's.
extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) {
  return used->stream_busy ? cudaErrorNotReady : cudaSuccess;
}
}

namespace latentkv {
namespace {

constexpr absl::Duration kTime = absl::Milliseconds(200);
// Of a busy machine.
constexpr absl::Duration kSlack = absl::Milliseconds(800);

class NcclFaultTest : public ::testing::Test {
 protected:
  NcclFaultTest() {
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    auto use = library == nullptr ? nullptr
                                  : reinterpret_cast<void (*)(FakeNccl*)>(
                                        dlsym(library, "fakeNcclUse"));
    if (use == nullptr) abort();  // It is another NCCL.
    used = &fake_;
    use(&fake_);
  }
  ~NcclFaultTest() override {
    communicator_.reset();
    fake_.abort_hangs = false;
    // For the thread that was left behind.
    absl::SleepFor(absl::Milliseconds(20));
  }
  absl::Status Connect() {
    const auto join = [](ByteSpan id) {
      return Meeting{7, Bytes(id.begin(), id.end())};
    };
    start_ = absl::Now();
    auto joined = Communicator::Join({"g", 0, 2}, join, 0, absl::Now() + kTime);
    if (joined.ok()) communicator_ = *std::move(joined);
    return joined.status();
  }
  absl::Status Reduce() {
    start_ = absl::Now();
    const absl::Time deadline = start_ + kTime;
    absl::Status status = communicator_->AllReduceSum(
        static_cast<int32_t*>(nullptr), 1, nullptr, deadline);
    return status.ok() ? communicator_->Await(nullptr, deadline) : status;
  }
  absl::Duration Took() const { return absl::Now() - start_; }

  FakeNccl fake_;
  std::unique_ptr<Communicator> communicator_;
  absl::Time start_;
};

TEST_F(NcclFaultTest, WithoutFaultsItFinalizes) {
  ASSERT_TRUE(Connect().ok());
  EXPECT_EQ(communicator_->generation(), 7u);
  EXPECT_TRUE(Reduce().ok());
  communicator_.reset();
  EXPECT_EQ(fake_.finalizes, 1);
  EXPECT_EQ(fake_.destroys, 1);
  EXPECT_EQ(fake_.aborts, 0);
}

TEST_F(NcclFaultTest, AnExchangeEndsAsOtherOperationsDo) {
  const Communicator::Piece piece = {1, nullptr, 5, nullptr, 5};
  ASSERT_TRUE(Connect().ok());
  EXPECT_TRUE(
      communicator_->ExchangeAll({piece}, nullptr, absl::Now() + kTime).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(communicator_->ExchangeAll(
      {{0, nullptr, 5}}, nullptr, absl::Now() + kTime)));
  fake_.operation_never_queued = true;
  start_ = absl::Now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      communicator_->ExchangeAll({piece}, nullptr, start_ + kTime)));
  EXPECT_LT(Took(), kTime + kSlack);
  fake_.operation_never_queued = false;
  ASSERT_TRUE(Connect().ok());
  fake_.peer_dies = true;
  EXPECT_TRUE(absl::IsUnavailable(
      communicator_->ExchangeAll({piece}, nullptr, absl::Now() + kTime)));
}

TEST_F(NcclFaultTest, ConnectingEndsAtTheDeadline) {
  fake_.connect_never_ends = true;
  const absl::Status status = Connect();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(Took(), kTime + kSlack);
  EXPECT_EQ(fake_.aborts, 1);
}

TEST_F(NcclFaultTest, ConnectingEndsAlsoIfItCannotBeAborted) {
  fake_.connect_never_ends = fake_.abort_hangs = true;
  EXPECT_TRUE(absl::IsDeadlineExceeded(Connect()));
  EXPECT_LT(Took(), kTime + kAbortTimeMax + kSlack);
}

TEST_F(NcclFaultTest, AnOperationEndsAtTheDeadlineAndTheCommunicatorWithIt) {
  for (const bool queued : {false, true}) {
    ASSERT_TRUE(Connect().ok());
    fake_.aborts = 0;
    (queued ? fake_.operation_never_done : fake_.operation_never_queued) = true;
    const absl::Status status = Reduce();
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_GE(Took(), kTime);
    EXPECT_LT(Took(), kTime + kSlack);
    EXPECT_FALSE(communicator_->holds_buffers());
    EXPECT_EQ(Reduce(), status);
    EXPECT_LT(Took(), kTime);
    EXPECT_EQ(communicator_->status(), status);
    communicator_.reset();
    EXPECT_EQ(fake_.aborts, 1);
  }
}

TEST_F(NcclFaultTest, APeerThatDiesEndsAnOperationAtOnce) {
  ASSERT_TRUE(Connect().ok());
  fake_.peer_dies = fake_.operation_never_done = true;
  const absl::Status status = Reduce();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LT(Took(), kTime);
  EXPECT_FALSE(communicator_->holds_buffers());
}

TEST_F(NcclFaultTest, AnAbortThatHangsIsLeftBehindOnceTheDeviceHasStopped) {
  ASSERT_TRUE(Connect().ok());
  fake_.operation_never_done = fake_.abort_hangs = true;
  EXPECT_TRUE(absl::IsDeadlineExceeded(Reduce()));
  EXPECT_LT(Took(), kTime + kSlack);
  EXPECT_FALSE(communicator_->holds_buffers());
  start_ = absl::Now();
  communicator_.reset();
  EXPECT_LT(Took(), kAbortTimeMax + kSlack);
}

TEST_F(NcclFaultTest, ADeviceThatDoesNotStopIsLeftBehindWithTheBuffers) {
  ASSERT_TRUE(Connect().ok());
  fake_.operation_never_done = fake_.abort_hangs = true;
  fake_.abort_stops_device = false;
  EXPECT_TRUE(absl::IsDeadlineExceeded(Reduce()));
  EXPECT_LT(Took(), kTime + kAbortTimeMax + kSlack);
  EXPECT_TRUE(communicator_->holds_buffers());
}

TEST_F(NcclFaultTest, AnyThreadMayAbort) {
  ASSERT_TRUE(Connect().ok());
  fake_.operation_never_done = true;
  std::thread other([this] {
    absl::SleepFor(absl::Milliseconds(30));
    communicator_->Abort();
  });
  EXPECT_TRUE(absl::IsCancelled(Reduce()));
  EXPECT_LT(Took(), kTime);
  other.join();
}

TEST_F(NcclFaultTest, LettingGoEndsAlsoIfTheOthersDoNotFinalize) {
  ASSERT_TRUE(Connect().ok());
  fake_.finalize_never_ends = true;
  start_ = absl::Now();
  communicator_.reset();
  EXPECT_LT(Took(), kFinalizeTimeMax + kSlack);
  EXPECT_EQ(fake_.aborts, 1);
}

}  // namespace
}  // namespace latentkv
