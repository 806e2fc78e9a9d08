// Built as a libnccl.so.2 of its own.
#include "tests/transport/fake_nccl.h"

#include <nccl.h>

#include <chrono>
#include <cstring>
#include <thread>

namespace {

latentkv::FakeNccl* fake = nullptr;

ncclResult_t Operate() {
  if (fake->peer_dies) fake->state = ncclRemoteError;
  if (fake->operation_never_queued) fake->state = ncclInProgress;
  if (fake->operation_never_done) fake->stream_busy = true;
  return ncclInProgress;
}

}  // namespace

extern "C" {

void fakeNcclUse(latentkv::FakeNccl* used) { fake = used; }

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 1, sizeof(*id));
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "what was told"; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int, ncclUniqueId, int,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  *comm = reinterpret_cast<ncclComm_t>(fake);
  fake->state = fake->connect_never_ends ? ncclInProgress : ncclSuccess;
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  *state = static_cast<ncclResult_t>(fake->state.load());
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
  ++fake->finalizes;
  fake->state = fake->finalize_never_ends ? ncclInProgress : ncclSuccess;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t) {
  ++fake->destroys;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t) {
  ++fake->aborts;
  if (fake->abort_stops_device) fake->stream_busy = false;
  while (fake->abort_hangs)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return ncclSuccess;
}
ncclResult_t ncclSend(const void*, size_t, ncclDataType_t, int, ncclComm_t,
                      cudaStream_t) {
  return Operate();
}
ncclResult_t ncclRecv(void*, size_t, ncclDataType_t, int, ncclComm_t,
                      cudaStream_t) {
  return Operate();
}
ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return Operate(); }
ncclResult_t ncclBroadcast(const void*, void*, size_t, ncclDataType_t, int,
                           ncclComm_t, cudaStream_t) {
  return Operate();
}
ncclResult_t ncclAllReduce(const void*, void*, size_t, ncclDataType_t,
                           ncclRedOp_t, ncclComm_t, cudaStream_t) {
  return Operate();
}

}  // extern "C"
