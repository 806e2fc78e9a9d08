// RocksDB behind plain types: database.cc is the one file that sees its
// headers.
#ifndef LATENTKV_STORAGE_DATABASE_H_
#define LATENTKV_STORAGE_DATABASE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "storage/block_store.h"

namespace latentkv {

enum class Family { kIndex = 0, kPayload = 1, kNamed = 2 };

// One step of an atomic write. Nothing is copied before Write: `value` must
// outlive it.
struct Change {
  Family family;
  std::string key;
  ByteSpan value;
  bool remove = false;
};

// Payload keys: big-endian, so that the order of keys is the order of storing.
std::string SequenceKey(uint64_t sequence);

// Thread-safe. Unavailable after Close, and while Recover found no way to open
// the files again.
class Database {
 public:
  // Creates what is missing. `capacity_bytes` scales files and buffers.
  // FailedPrecondition when another process holds the folder, DataLoss when its
  // files cannot be read.
  static absl::StatusOr<std::unique_ptr<Database>> Open(
      const std::string& path, uint64_t capacity_bytes);
  virtual ~Database() = default;

  // All changes or none; they survive kill -9. ResourceExhausted if the disk
  // refuses: then every call that writes is refused until Recover is OK, and
  // nothing of what this wrote can be counted on.
  virtual absl::Status Write(const std::vector<Change>& changes) = 0;
  // What Write has acknowledged so far survives the loss of power.
  virtual absl::Status Sync() = 0;
  // NotFound; DataLoss for bytes that cannot be read back. Payloads are not
  // checked: their frames check themselves. What it returns may outlive the
  // database.
  virtual absl::StatusOr<SharedBytes> Read(Family family,
                                           const std::string& key) = 0;
  // Every entry whose key starts with `prefix`, in order; `visit` must not call
  // back.
  using Visitor =
      std::function<void(absl::string_view key, absl::string_view value)>;
  virtual absl::Status Scan(Family family, const std::string& prefix,
                            const Visitor& visit) = 0;

  // After a refusal: opens the files anew once there is space for it, while
  // other calls wait. OK when writes are possible.
  virtual absl::Status Recover() = 0;
  // Gives space of removed payloads back: first files in which nothing lives,
  // then, while `enough` is false, by rewriting what lives in the oldest eighth
  // of the files, again and again. DataLoss when a payload in the way cannot be
  // read. Of this interface `enough` may call DiskBytes alone.
  virtual absl::Status Reclaim(const std::function<bool()>& enough) = 0;
  // Makes a Reclaim under way return soon.
  virtual void StopReclaim() = 0;
  // Sizes of all files, log included.
  virtual uint64_t DiskBytes() const = 0;
  // The most that files hold besides payloads: index and named values as they
  // are, log and buffers at their largest.
  virtual uint64_t OverheadBytes() const = 0;
  virtual absl::Status Close() = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_STORAGE_DATABASE_H_
