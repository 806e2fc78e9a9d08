#include "tests/transport/nccl_roles.h"

#include <cuda_runtime_api.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "tests/transport/frame_log.h"
#include "tests/transport/rank_process.h"
#include "transport/nccl/communicator.h"
#include "transport/nccl/nccl_link.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"

namespace latentkv {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);
absl::Time Soon() { return absl::Now() + kLong; }

#define LATENTKV_MUST(condition, why)                                       \
  if (!(condition)) {                                                       \
    std::cerr << __FILE__ << ":" << __LINE__ << ": " << (why) << std::endl; \
    std::_Exit(1);                                                          \
  }

void Must(const absl::Status& status) {
  LATENTKV_MUST(status.ok(), status.ToString())
}
void Must(cudaError_t error) {
  LATENTKV_MUST(error == cudaSuccess, cudaGetErrorString(error))
}

// [count] on the device.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : count_(values.size()) {
    Must(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T)));
    Must(cudaMemcpy(data_, values.data(), count_ * sizeof(T),
                    cudaMemcpyHostToDevice));
  }
  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    Must(cudaMemcpy(values.data(), data_, count_ * sizeof(T),
                    cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  const size_t count_;
};

template <typename T>
std::vector<T> Values(uint32_t rank, size_t count) {
  std::mt19937 random(rank + 100);
  std::vector<T> values(count);
  // Floats are whole and small, so that their sums are exact in any order; sums
  // of int32 pass 2^31.
  for (T& value : values) {
    value = std::is_same_v<T, float>
                ? static_cast<T>(static_cast<int>(random() % 2001) - 1000)
                : static_cast<T>(random());
  }
  return values;
}

std::unique_ptr<Communicator> Connect(const Role& role) {
  const auto client = *PeerClient::Open(MeetingAddress(role.folder));
  const GroupPlace place = {role.name, role.rank, role.ranks};
  auto communicator = Communicator::Join(
      place,
      [&](ByteSpan id) {
        return client->Join(place, id, CallLimits::In(kLong));
      },
      0, Soon());
  Must(communicator.status());
  return *std::move(communicator);
}

template <typename T, typename Combine>
void CheckAllReduce(const Role& role, size_t count, Communicator* communicator,
                    cudaStream_t stream,
                    absl::Status (Communicator::*reduce)(T*, size_t,
                                                         cudaStream_t,
                                                         absl::Time),
                    Combine combine) {
  std::vector<T> expected = Values<T>(0, count);
  for (uint32_t rank = 1; rank < role.ranks; ++rank) {
    const std::vector<T> values = Values<T>(rank, count);
    for (size_t i = 0; i < count; ++i)
      expected[i] = combine(expected[i], values[i]);
  }
  const DeviceArray<T> array(Values<T>(role.rank, count));
  Must((communicator->*reduce)(array.data(), count, stream, Soon()));
  Must(communicator->Await(stream, Soon()));
  LATENTKV_MUST(array.values() == expected,
                absl::StrCat("a reduction of ", count, " is wrong"));
}

int Collectives(const Role& role) {
  const auto communicator = Connect(role);
  cudaStream_t stream;
  Must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  using Sum = absl::Status (Communicator::*)(int32_t*, size_t, cudaStream_t,
                                             absl::Time);
  using FloatSum =
      absl::Status (Communicator::*)(float*, size_t, cudaStream_t, absl::Time);
  for (const size_t count : {size_t{1}, size_t{1000}, (size_t{1} << 20) + 3}) {
    CheckAllReduce<int32_t>(
        role, count, communicator.get(), stream,
        static_cast<Sum>(&Communicator::AllReduceSum),
        [](int32_t a, int32_t b) {
          return static_cast<int32_t>(static_cast<uint32_t>(a) +
                                      static_cast<uint32_t>(b));
        });
    CheckAllReduce<float>(role, count, communicator.get(), stream,
                          static_cast<FloatSum>(&Communicator::AllReduceSum),
                          [](float a, float b) { return a + b; });
    CheckAllReduce<float>(role, count, communicator.get(), stream,
                          &Communicator::AllReduceMax,
                          [](float a, float b) { return std::max(a, b); });
    for (uint32_t root = 0; root < role.ranks; ++root) {
      const DeviceArray<int32_t> array(Values<int32_t>(role.rank, count));
      Must(communicator->Broadcast(array.data(), count * sizeof(int32_t), root,
                                   stream, Soon()));
      Must(communicator->Await(stream, Soon()));
      LATENTKV_MUST(array.values() == Values<int32_t>(root, count),
                    "a broadcast is wrong");
    }
    // From each rank to the next, in turn.
    for (uint32_t from = 0; from < role.ranks; ++from) {
      const uint32_t to = (from + 1) % role.ranks;
      if (role.rank != from && role.rank != to) continue;
      const DeviceArray<int32_t> array(Values<int32_t>(role.rank, count));
      Must(role.rank == from
               ? communicator->Send(array.data(), count * sizeof(int32_t), to,
                                    stream, Soon())
               : communicator->Receive(array.data(), count * sizeof(int32_t),
                                       from, stream, Soon()));
      Must(communicator->Await(stream, Soon()));
      LATENTKV_MUST(array.values() == Values<int32_t>(from, count),
                    "what was received is not what was sent");
    }
  }
  LATENTKV_MUST(absl::IsInvalidArgument(communicator->Broadcast(
                    nullptr, 1, role.ranks, stream, Soon())),
                "no rank");
  LATENTKV_MUST(absl::IsInvalidArgument(
                    communicator->Send(nullptr, 1, role.rank, stream, Soon())),
                "to itself");
  return 0;
}

// Rank 1 ends, by `signal`, a moment after it began a long reduction.
int ReduceBesideADyingRank(const Role& role, int signal) {
  auto communicator = Connect(role);
  cudaStream_t stream;
  Must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const DeviceArray<float> array(std::vector<float>(16u << 20, 1.0f));
  const size_t count = 16u << 20;
  Must(communicator->AllReduceMax(array.data(), count, stream, Soon()));
  Must(communicator->Await(stream, Soon()));
  if (role.rank == 1) {
    std::thread([signal] {
      absl::SleepFor(absl::Milliseconds(5));
      kill(getpid(), signal);
    }).detach();
  }
  absl::Status status;
  while (status.ok()) {
    const absl::Time deadline = absl::Now() + kOperationTime;
    status = communicator->AllReduceMax(array.data(), count, stream, deadline);
    if (status.ok()) status = communicator->Await(stream, deadline);
  }
  WriteMoment(FreedPath(role.folder, role.rank));
  std::cout << "rank " << role.rank << ": " << status << std::endl;
  LATENTKV_MUST(absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status),
                status.ToString());
  LATENTKV_MUST(!communicator->holds_buffers(),
                "the device still uses the buffers");
  LATENTKV_MUST(communicator->Await(stream, Soon()) == status,
                "another error, later");
  const absl::Time start = absl::Now();
  communicator.reset();
  LATENTKV_MUST(absl::Now() - start < kAbortTimeMax + absl::Seconds(1),
                "letting go took too long");
  Must(cudaStreamSynchronize(stream));
  return 0;
}

// The rank `dead` meets the other, and dies before it connects.
int ConnectToADeadRank(const Role& role, uint32_t dead) {
  const auto client = *PeerClient::Open(MeetingAddress(role.folder));
  const GroupPlace place = {role.name, role.rank, role.ranks};
  absl::Time met = absl::InfiniteFuture();
  const auto communicator = Communicator::Join(
      place,
      [&](ByteSpan id) {
        auto meeting = client->Join(place, id, CallLimits::In(kLong));
        if (role.rank == dead) kill(getpid(), SIGKILL);
        met = absl::Now();
        return meeting;
      },
      0, absl::Now() + kConnectTime);
  WriteMoment(FreedPath(role.folder, role.rank));
  std::cout << "rank " << role.rank << ": " << communicator.status()
            << std::endl;
  LATENTKV_MUST(absl::IsUnavailable(communicator.status()) ||
                    absl::IsDeadlineExceeded(communicator.status()),
                communicator.status().ToString());
  LATENTKV_MUST(met < absl::InfiniteFuture(), "nobody was met");
  return 0;
}

// A link of which one batch is interrupted by the end of this process, or that
// says when it came to an end.
class WatchedLink final : public DeviceLink {
 public:
  WatchedLink(std::unique_ptr<DeviceLink> link, int dies_at,
              std::string freed_path)
      : link_(std::move(link)),
        dies_at_(dies_at),
        freed_path_(std::move(freed_path)) {}
  uint64_t generation() const override { return link_->generation(); }
  size_t batch_bytes_max() const override { return link_->batch_bytes_max(); }
  absl::Status Send(absl::Span<const HandoffFrame> frames,
                    absl::Time deadline) override {
    Die();
    moving_ = true;
    absl::Status status = link_->Send(frames, deadline);
    moving_ = false;
    if (!status.ok()) Say(status);
    return status;
  }
  absl::StatusOr<std::vector<HandoffFrame>> Receive(
      absl::Span<const uint64_t> frame_bytes, absl::Time deadline) override {
    Die();
    moving_ = true;
    auto frames = link_->Receive(frame_bytes, deadline);
    moving_ = false;
    if (!frames.ok()) Say(frames.status());
    return frames;
  }
  absl::Status CopyToHost(const HandoffFrame& frame, uint8_t* out) override {
    return link_->CopyToHost(frame, out);
  }
  void Abort() override {
    const bool first = link_->generation() != 0;
    link_->Abort();
    // What was sent may lie in NCCL's buffers when the other end dies.
    if (first && !moving_)
      Say(absl::CancelledError("given up between two calls"));
  }

 private:
  // 16 MiB through the sockets of loopback take several milliseconds.
  void Die() {
    if (batches_++ != dies_at_) return;
    std::thread([] {
      absl::SleepFor(absl::Milliseconds(1));
      kill(getpid(), SIGKILL);
    }).detach();
  }
  void Say(const absl::Status& status) {
    WriteMoment(freed_path_);
    std::cout << "the link after " << batches_ << " batches: " << status
              << std::endl;
  }

  const std::unique_ptr<DeviceLink> link_;
  const int dies_at_;
  const std::string freed_path_;
  int batches_ = 0;
  std::atomic<bool> moving_ = false;
};

constexpr size_t kBatchBytes = 16u << 20;
// Some 128 MiB.
std::vector<HandoffFrame> Frames() { return RandomFrames(7, 64, 4u << 20); }

std::unique_ptr<DeviceLink> LinkOf(const Role& role, const JoinFunction& join) {
  auto communicator = Communicator::Join({"pd", role.rank, 2}, join, 0, Soon());
  Must(communicator.status());
  auto link = MakeNcclLink(*std::move(communicator), 0, kBatchBytes);
  Must(link.status());
  const int dies_at = absl::EndsWith(role.name, "-killed") ? 2 : -1;
  return std::make_unique<WatchedLink>(*std::move(link), dies_at,
                                       FreedPath(role.folder, role.rank));
}

int SendFrames(const Role& role) {
  const auto client = *PeerClient::Open(MeetingAddress(role.folder));
  std::vector<HandoffFrame> frames = Frames();
  std::unique_ptr<DeviceLink> link;
  if (!absl::EndsWith(role.name, "-over-grpc")) {
    // A receiver that does not listen yet is waited for.
    link = LinkOf(role, [&](ByteSpan id) -> absl::StatusOr<Meeting> {
      const absl::Time deadline = Soon();
      for (;;) {
        auto meeting =
            client->Join({"pd", role.rank, 2}, id, CallLimits{deadline});
        if (!absl::IsUnavailable(meeting.status()) || absl::Now() > deadline)
          return meeting;
        absl::SleepFor(absl::Milliseconds(50));
      }
    });
    for (HandoffFrame& frame : frames) {
      void* copy = nullptr;
      Must(cudaMalloc(&copy, frame.bytes));
      Must(cudaMemcpy(copy, frame.data, frame.bytes, cudaMemcpyHostToDevice));
      frame = {static_cast<uint8_t*>(copy), frame.bytes, true, nullptr};
    }
  }
  const absl::Time start = absl::Now();
  const auto report = client->HandOff({"t", frames, link.get(), kBatchTime},
                                      CallLimits::In(kLong));
  Must(report.status());
  std::cout << report->frames_over_link << " of " << frames.size()
            << " frames over the link (" << report->link_status << "), "
            << absl::Now() - start << std::endl;
  const bool whole = role.name == "send-all", none = link == nullptr;
  LATENTKV_MUST(whole ? report->frames_over_link == frames.size()
                      : none || (report->frames_over_link > 0 &&
                                 report->frames_over_link < frames.size()),
                "frames went another way than they should");
  LATENTKV_MUST(report->link_status.ok() == (whole || none),
                report->link_status.ToString());
  return 0;
}

// Compares frames wherever they lie.
class DeviceFrameLog final : public FrameLog {
 public:
  using FrameLog::FrameLog;
  absl::Status Take(uint64_t index, const HandoffFrame& frame) override {
    if (!frame.on_device) return FrameLog::Take(index, frame);
    Bytes copy(frame.bytes);
    Must(cudaMemcpy(copy.data(), frame.data, frame.bytes,
                    cudaMemcpyDeviceToHost));
    return FrameLog::Take(index, {copy.data(), copy.size(), false, nullptr});
  }
};

int ReceiveFrames(const Role& role) {
  PeerService service;
  const auto server = PeerServer::Start(MeetingAddress(role.folder), &service);
  Must(server.status());
  std::unique_ptr<DeviceLink> link;
  if (!absl::EndsWith(role.name, "-over-grpc")) {
    link = LinkOf(role, [&](ByteSpan id) {
      return service.meetings()->Join({"pd", role.rank, 2}, id, Soon(),
                                      [] { return false; });
    });
  }
  const std::vector<HandoffFrame> frames = Frames();
  DeviceFrameLog log(frames);
  auto expected = service.Expect({"t", 0, &log, link.get(), kBatchTime});
  Must(expected.status());
  Must((*expected)->Await(Soon()));
  LATENTKV_MUST(log.next() == frames.size(),
                absl::StrCat(log.next(), " frames came"));
  const uint64_t over_link = (*expected)->taken_over_link();
  const bool whole = role.name == "receive-all", none = link == nullptr;
  LATENTKV_MUST(over_link == (whole  ? frames.size()
                              : none ? 0
                                     : over_link) &&
                    (none || over_link > 0) &&
                    (whole || over_link < frames.size()),
                absl::StrCat(over_link, " frames over the link"));
  return 0;
}

}  // namespace

int PlayRole(const Role& role) {
  if (role.name == "collectives") return Collectives(role);
  if (role.name == "reduce-killed")
    return ReduceBesideADyingRank(role, SIGKILL);
  if (role.name == "reduce-stopped")
    return ReduceBesideADyingRank(role, SIGSTOP);
  if (role.name == "connect-killed-0") return ConnectToADeadRank(role, 0);
  if (role.name == "connect-killed-1") return ConnectToADeadRank(role, 1);
  if (absl::StartsWith(role.name, "send-")) return SendFrames(role);
  if (absl::StartsWith(role.name, "receive-")) return ReceiveFrames(role);
  std::cerr << "no role " << role.name << std::endl;
  return 2;
}

}  // namespace latentkv
