#include "transport/nccl/nccl_library.h"

#include <dlfcn.h>

#include <memory>

#include "absl/strings/str_cat.h"

namespace latentkv {
namespace {

constexpr char kName[] = "libnccl.so.2";
// The first that may be aborted from a thread of its own.
constexpr int kVersionMin = NCCL_VERSION(2, 19, 1);

template <typename Function>
void Find(void* handle, const char* name, Function* function,
          absl::Status* status) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (*function == nullptr)
    *status = absl::FailedPreconditionError(absl::StrCat("NCCL has no ", name));
}

}  // namespace

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const absl::StatusOr<const NcclLibrary*> library = Open(kName);
  return library;
}

absl::StatusOr<const NcclLibrary*> NcclLibrary::Open(const char* name) {
  void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL cannot be used: ", why == nullptr ? name : why,
                     "; is its folder in LD_LIBRARY_PATH?"));
  }
  auto library = std::make_unique<NcclLibrary>();
  absl::Status status;
  Find(handle, "ncclGetVersion", &library->GetVersion, &status);
  Find(handle, "ncclGetUniqueId", &library->GetUniqueId, &status);
  Find(handle, "ncclGetErrorString", &library->GetErrorString, &status);
  Find(handle, "ncclCommInitRankConfig", &library->CommInitRankConfig, &status);
  Find(handle, "ncclCommGetAsyncError", &library->CommGetAsyncError, &status);
  Find(handle, "ncclCommFinalize", &library->CommFinalize, &status);
  Find(handle, "ncclCommDestroy", &library->CommDestroy, &status);
  Find(handle, "ncclCommAbort", &library->CommAbort, &status);
  Find(handle, "ncclSend", &library->Send, &status);
  Find(handle, "ncclRecv", &library->Recv, &status);
  Find(handle, "ncclBroadcast", &library->Broadcast, &status);
  Find(handle, "ncclAllReduce", &library->AllReduce, &status);
  Find(handle, "ncclGroupStart", &library->GroupStart, &status);
  Find(handle, "ncclGroupEnd", &library->GroupEnd, &status);
  if (!status.ok()) return status;
  int version = 0;
  if (library->GetVersion(&version) != ncclSuccess || version < kVersionMin) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " has version ", version, ", and ", kVersionMin,
                     " is the least that can be used"));
  }
  return library.release();
}

}  // namespace latentkv
