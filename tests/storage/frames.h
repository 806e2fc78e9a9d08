// Frames and a clock for the tests of this folder.
#ifndef LATENTKV_TESTS_STORAGE_FRAMES_H_
#define LATENTKV_TESTS_STORAGE_FRAMES_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/frame.h"
#include "core/limits.h"
#include "storage/rocksdb_block_store.h"
#include "tests/storage/scratch_folder.h"

namespace latentkv {

inline Digest KeyOf(uint32_t chain, uint32_t block) {
  return Sha256({AsBytes(std::to_string(chain) + "/" + std::to_string(block))});
}

inline RecordId ExactId(uint32_t chain, uint32_t block) {
  return {KeyOf(chain, block), Encoding::Exact()};
}

inline std::vector<Digest> KeysOf(uint32_t chain, uint32_t count) {
  std::vector<Digest> keys;
  for (uint32_t block = 0; block < count; ++block)
    keys.push_back(KeyOf(chain, block));
  return keys;
}

// A frame of two sections whose bytes follow from chain, block and encoding;
// `bytes` of sections together.
inline Bytes MakeFrame(uint32_t chain, uint32_t block, size_t bytes,
                       Encoding encoding = Encoding::Exact(), float loss = 0) {
  FrameHeader header;
  header.key = KeyOf(chain, block);
  header.geometry = Sha256({AsBytes("geometry")});
  header.encoding = encoding;
  header.first_token = block * kBlockTokens;
  header.token_count = kBlockTokens;
  header.loss_own = loss;
  header.loss_chain = loss;
  uint64_t state =
      chain * 1000003u + block * 7919u + encoding.basis.bytes[0] + 1;
  std::vector<Bytes> sections = {Bytes(bytes / 2), Bytes(bytes - bytes / 2)};
  for (Bytes& section : sections) {
    for (uint8_t& byte : section)
      byte =
          (state = state * 6364136223846793005u + 1442695040888963407u) >> 56;
  }
  return WriteFrame(header, sections).value();
}

inline Digest ParentOf(uint32_t chain, uint32_t block) {
  return block == 0 ? Digest{} : KeyOf(chain, block - 1);
}

inline absl::Status PutBlock(BlockStore* store, uint32_t chain, uint32_t block,
                             size_t bytes, bool sync = false) {
  return store->Put(MakeFrame(chain, block, bytes), ParentOf(chain, block),
                    sync);
}

// Whether `frame` has the bytes that PutBlock stored.
inline bool IsBlock(const SharedBytes& frame, uint32_t chain, uint32_t block,
                    size_t bytes) {
  return frame.bytes == ByteSpan(MakeFrame(chain, block, bytes));
}

inline PrefixQuery ExactQuery(const std::vector<Digest>& keys,
                              uint32_t lease_ms = 0) {
  PrefixQuery query;
  query.keys = keys;
  query.accept_exact = true;
  query.lease_ms = lease_ms;
  return query;
}

class ManualClock : public Clock {
 public:
  absl::Time Now() const override {
    std::lock_guard lock(mutex_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    std::lock_guard lock(mutex_);
    now_ += duration;
  }

 private:
  mutable std::mutex mutex_;
  absl::Time now_ = absl::FromUnixSeconds(1000000);
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_STORAGE_FRAMES_H_
