// kill_writer FOLDER CHAIN CAPACITY: stores block after block until it is killed, and writes the number of each to
// stdout (u32) once it was acknowledged.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "tests/storage/frames.h"
#include "tests/storage/kill_frames.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const uint32_t chain = std::atoi(argv[2]);
  auto store = latentkv::RocksDbBlockStore::Open(
      {.path = argv[1], .capacity_bytes = std::strtoull(argv[3], nullptr, 10), .memory_tier_bytes = 1 << 20});
  if (!store.ok()) {
    std::fprintf(stderr, "kill_writer: %s\n", store.status().ToString().c_str());
    return 1;
  }
  for (uint32_t block = 0;; ++block) {
    absl::Status status = (*store)->Put(latentkv::KillFrame(chain, block), block % 16 == 0);
    if (!status.ok()) {
      std::fprintf(stderr, "kill_writer: %s\n", status.ToString().c_str());
      return 1;
    }
    if (write(STDOUT_FILENO, &block, sizeof(block)) != sizeof(block)) return 1;
  }
}
