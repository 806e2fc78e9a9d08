// A file that is there whole or not at all.
#ifndef LATENTKV_CLIENT_C_WHOLE_FILE_H_
#define LATENTKV_CLIENT_C_WHOLE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "core/bytes.h"

namespace latentkv {

// Writes `bytes` beside `path`, syncs, and gives the file its name, replacing
// what had it. On an error, which carries the system's code, nothing is left
// and `path` is as it was.
absl::Status WriteWholeFile(const std::string& path, ByteSpan bytes);

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_C_WHOLE_FILE_H_
