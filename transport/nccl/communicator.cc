#include "transport/nccl/communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/nccl/device_guard.h"

namespace latentkv {
namespace {

static_assert(sizeof(ncclUniqueId) <= kGroupIdBytesMax);

// Between two looks: none at first, since most of what is waited for takes
// microseconds, and then longer ones.
class Pause {
 public:
  void operator()() {
    if (++looks_ < 200) {
      std::this_thread::yield();
    } else {
      absl::SleepFor(pause_);
      pause_ = std::min(2 * pause_, absl::Milliseconds(1));
    }
  }

 private:
  int looks_ = 0;
  absl::Duration pause_ = absl::Microseconds(20);
};

// FailedPrecondition if there is no such device.
absl::Status CheckDevice(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device: ", cudaGetErrorString(error)));
  }
  if (device >= 0 && device < count) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("no CUDA device ", device, ": there are ", count));
}

void FinalizeOrAbort(const NcclLibrary* nccl, ncclComm_t comm, int device,
                     bool finalize) {
  cudaSetDevice(device);
  if (finalize) {
    ncclResult_t state = nccl->CommFinalize(comm);
    const absl::Time deadline = absl::Now() + kFinalizeTimeMax;
    for (Pause pause; state == ncclInProgress && absl::Now() < deadline;
         pause()) {
      if (nccl->CommGetAsyncError(comm, &state) != ncclSuccess) break;
    }
    if (state == ncclSuccess) {
      nccl->CommDestroy(comm);
      return;
    }
  }
  nccl->CommAbort(comm);
}

}  // namespace

// What a thread that may be left behind and whoever waits for it share.
struct Communicator::Ending {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

absl::StatusOr<std::unique_ptr<Communicator>> Communicator::Join(
    const GroupPlace& place, const JoinFunction& join, int device,
    absl::Time deadline) {
  absl::StatusOr<const NcclLibrary*> nccl = NcclLibrary::Get();
  if (!nccl.ok()) return nccl.status();
  absl::Status status = CheckDevice(device);
  if (!status.ok()) return status;
  Bytes id;
  if (place.rank == 0) {
    ncclUniqueId made;
    const ncclResult_t result = (*nccl)->GetUniqueId(&made);
    if (result != ncclSuccess) {
      return absl::FailedPreconditionError(
          absl::StrCat("NCCL makes no id: ", (*nccl)->GetErrorString(result)));
    }
    id.assign(made.internal, made.internal + sizeof(made.internal));
  }
  absl::StatusOr<Meeting> meeting = join(id);
  if (!meeting.ok()) return meeting.status();
  std::unique_ptr<Communicator> communicator(
      new Communicator(*nccl, place, meeting->generation, device));
  status = communicator->Connect(meeting->id, deadline);
  if (!status.ok()) return status;
  return communicator;
}

absl::Status Communicator::Connect(const Bytes& id, absl::Time deadline) {
  ncclUniqueId unique;
  if (id.size() != sizeof(unique.internal))
    return End(absl::InternalError("the id of the meeting is not one of NCCL"));
  std::memcpy(unique.internal, id.data(), id.size());
  DeviceGuard guard(device_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  absl::Status status = ResultStatus(
      nccl_->CommInitRankConfig(&comm_, static_cast<int>(place_.ranks), unique,
                                static_cast<int>(place_.rank), &config),
      "connecting");
  if (status.ok()) status = Poll(deadline, [] { return true; });
  return status.ok() ? status : EndOn(status, nullptr, true);
}

Communicator::~Communicator() {
  StartTearDown(status().ok());
  AwaitTornDown(torn_down_by_);
}

absl::Status Communicator::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

void Communicator::Abort() {
  End(absl::CancelledError("the communicator was aborted")).IgnoreError();
}

absl::Status Communicator::CheckPeer(uint32_t peer) const {
  if (peer < place_.ranks && peer != place_.rank) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "rank ", place_.rank, " of ", place_.ranks, " has no peer ", peer));
}

absl::Status Communicator::Send(const void* data, size_t bytes, uint32_t peer,
                                cudaStream_t stream, absl::Time deadline) {
  absl::Status status = CheckPeer(peer);
  if (!status.ok()) return status;
  return Enqueue(
      [&] {
        return nccl_->Send(data, bytes, ncclUint8, static_cast<int>(peer),
                           comm_, stream);
      },
      stream, deadline);
}

absl::Status Communicator::Receive(void* data, size_t bytes, uint32_t peer,
                                   cudaStream_t stream, absl::Time deadline) {
  absl::Status status = CheckPeer(peer);
  if (!status.ok()) return status;
  return Enqueue(
      [&] {
        return nccl_->Recv(data, bytes, ncclUint8, static_cast<int>(peer),
                           comm_, stream);
      },
      stream, deadline);
}

absl::Status Communicator::ExchangeAll(absl::Span<const Piece> pieces,
                                       cudaStream_t stream,
                                       absl::Time deadline) {
  for (const Piece& piece : pieces) {
    absl::Status status = CheckPeer(piece.peer);
    if (!status.ok()) return status;
  }
  const auto move_all = [&] {
    ncclResult_t result = nccl_->GroupStart();
    const auto add = [&result](ncclResult_t next) {
      if (result == ncclSuccess || result == ncclInProgress) result = next;
    };
    for (const Piece& piece : pieces) {
      const int peer = static_cast<int>(piece.peer);
      if (piece.send_bytes > 0)
        add(nccl_->Send(piece.send, piece.send_bytes, ncclUint8, peer, comm_,
                        stream));
      if (piece.receive_bytes > 0)
        add(nccl_->Recv(piece.receive, piece.receive_bytes, ncclUint8, peer,
                        comm_, stream));
    }
    add(nccl_->GroupEnd());
    return result;
  };
  return Enqueue(move_all, stream, deadline);
}

absl::Status Communicator::Broadcast(void* data, size_t bytes, uint32_t root,
                                     cudaStream_t stream, absl::Time deadline) {
  if (root >= place_.ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no rank ", root, " of ", place_.ranks));
  }
  return Enqueue(
      [&] {
        return nccl_->Broadcast(data, data, bytes, ncclUint8,
                                static_cast<int>(root), comm_, stream);
      },
      stream, deadline);
}

absl::Status Communicator::AllReduceSum(int32_t* values, size_t count,
                                        cudaStream_t stream,
                                        absl::Time deadline) {
  return AllReduce(values, count, ncclInt32, ncclSum, stream, deadline);
}
absl::Status Communicator::AllReduceSum(float* values, size_t count,
                                        cudaStream_t stream,
                                        absl::Time deadline) {
  return AllReduce(values, count, ncclFloat32, ncclSum, stream, deadline);
}
absl::Status Communicator::AllReduceMax(float* values, size_t count,
                                        cudaStream_t stream,
                                        absl::Time deadline) {
  return AllReduce(values, count, ncclFloat32, ncclMax, stream, deadline);
}

absl::Status Communicator::AllReduce(void* values, size_t count,
                                     ncclDataType_t type, ncclRedOp_t operation,
                                     cudaStream_t stream, absl::Time deadline) {
  return Enqueue(
      [&] {
        return nccl_->AllReduce(values, values, count, type, operation, comm_,
                                stream);
      },
      stream, deadline);
}

absl::Status Communicator::Enqueue(
    const std::function<ncclResult_t()>& operation, cudaStream_t stream,
    absl::Time deadline) {
  absl::Status ended = status();
  if (!ended.ok()) return EndOn(ended, stream, true);
  DeviceGuard guard(device_);
  absl::Status status = ResultStatus(operation(), "an operation");
  // Without blocking, a thread of NCCL's puts it on the stream, after
  // connecting if it is the first of its kind.
  if (status.ok()) status = Poll(deadline, [] { return true; });
  return status.ok() ? status : EndOn(status, stream, true);
}

absl::Status Communicator::Await(cudaStream_t stream, absl::Time deadline) {
  absl::Status ended = status();
  if (!ended.ok()) return EndOn(ended, stream, false);
  DeviceGuard guard(device_);
  absl::Status status = Poll(deadline, [stream]() -> absl::StatusOr<bool> {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error == cudaErrorNotReady) return false;
    if (error != cudaSuccess) return CudaStatus(error, "the stream");
    return true;
  });
  return status.ok() ? status : EndOn(status, stream, false);
}

// Until NCCL has nothing in progress of its own and `done`.
absl::Status Communicator::Poll(
    absl::Time deadline, const std::function<absl::StatusOr<bool>()>& done) {
  for (Pause pause;; pause()) {
    absl::Status ended = status();
    if (!ended.ok()) return ended;
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl_->CommGetAsyncError(comm_, &state);
    absl::Status failed =
        ResultStatus(asked != ncclSuccess ? asked : state, "a peer");
    if (!failed.ok()) return failed;
    if (state == ncclSuccess) {
      absl::StatusOr<bool> ready = done();
      if (!ready.ok()) return ready.status();
      if (*ready) return absl::OkStatus();
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", place_.rank, " of ", place_.ranks,
                       " waited for the others in vain"));
    }
  }
}

absl::Status Communicator::ResultStatus(ncclResult_t result,
                                        const char* what) const {
  if (result == ncclSuccess || result == ncclInProgress)
    return absl::OkStatus();
  const std::string text =
      absl::StrCat(what, ": NCCL says ", nccl_->GetErrorString(result));
  // Sockets that break are one or the other, by the transport.
  if (result == ncclRemoteError || result == ncclSystemError)
    return absl::UnavailableError(text);
  return absl::InternalError(text);
}

// The first error stays.
absl::Status Communicator::End(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  if (status_.ok()) status_ = status;
  return status_;
}

absl::Status Communicator::EndOn(const absl::Status& status,
                                 cudaStream_t stream, bool enqueuing) {
  const absl::Status ended = End(status);
  if (comm_ == nullptr) return ended;
  DeviceGuard guard(device_);
  StartTearDown(false);
  // Freeing what NCCL holds may take longer than that its kernels stop; only
  // what is not on the stream yet has to be waited for by way of it.
  const bool torn_down =
      AwaitTornDown(enqueuing ? torn_down_by_ : absl::InfinitePast());
  bool idle = false;
  for (Pause pause; !idle && absl::Now() < torn_down_by_; pause())
    idle = cudaStreamQuery(stream) != cudaErrorNotReady;
  holds_buffers_ = !idle || (enqueuing && !torn_down);
  return ended;
}

// On a thread, since NCCL's own calls have been seen to hang (NVIDIA/nccl
// issues 549 and 992).
void Communicator::StartTearDown(bool finalize) {
  if (comm_ == nullptr) return;
  torn_down_by_ = absl::Now() + kAbortTimeMax +
                  (finalize ? kFinalizeTimeMax : absl::ZeroDuration());
  ending_ = std::make_shared<Ending>();
  try {
    std::thread([nccl = nccl_, comm = comm_, device = device_, finalize,
                 ending = ending_] {
      FinalizeOrAbort(nccl, comm, device, finalize);
      std::lock_guard lock(ending->mutex);
      ending->done = true;
      ending->changed.notify_all();
    }).detach();
  } catch (const std::system_error&) {
    // The communicator stays: there is nobody to wait for its end.
    torn_down_by_ = absl::Now();
  }
  comm_ = nullptr;
}

bool Communicator::AwaitTornDown(absl::Time deadline) {
  if (ending_ == nullptr) return true;
  std::unique_lock lock(ending_->mutex);
  return ending_->changed.wait_until(lock, absl::ToChronoTime(deadline),
                                     [this] { return ending_->done; });
}

}  // namespace latentkv
