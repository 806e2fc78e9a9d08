// NCCL as found at run time: docs/decisions/0015-nccl-is-opened-when-used.md.
#ifndef LATENTKV_TRANSPORT_NCCL_NCCL_LIBRARY_H_
#define LATENTKV_TRANSPORT_NCCL_NCCL_LIBRARY_H_

#include <nccl.h>

#include "absl/status/statusor.h"

namespace latentkv {

// NCCL's functions, named as NCCL does.
struct NcclLibrary {
  // Opens "libnccl.so.2": the one that the process has already (an engine's),
  // or that the loader finds (LD_LIBRARY_PATH). Once a process; it is never
  // closed. FailedPrecondition says what is missing or too old.
  static absl::StatusOr<const NcclLibrary*> Get();
  // The same for a library of another name, each time anew.
  static absl::StatusOr<const NcclLibrary*> Open(const char* name);

  decltype(&ncclGetVersion) GetVersion;
  decltype(&ncclGetUniqueId) GetUniqueId;
  decltype(&ncclGetErrorString) GetErrorString;
  decltype(&ncclCommInitRankConfig) CommInitRankConfig;
  decltype(&ncclCommGetAsyncError) CommGetAsyncError;
  decltype(&ncclCommFinalize) CommFinalize;
  decltype(&ncclCommDestroy) CommDestroy;
  decltype(&ncclCommAbort) CommAbort;
  decltype(&ncclSend) Send;
  decltype(&ncclRecv) Recv;
  decltype(&ncclBroadcast) Broadcast;
  decltype(&ncclAllReduce) AllReduce;
  decltype(&ncclGroupStart) GroupStart;
  decltype(&ncclGroupEnd) GroupEnd;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_NCCL_NCCL_LIBRARY_H_
