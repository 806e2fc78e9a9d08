// storage/database.cc puts a function of its own in the place of RocksDB's.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "rocksdb/version.h"
#include "storage/database.h"

namespace latentkv {
namespace {

constexpr char kName[] = "_ZN7rocksdb6crc32c6ExtendEjPKcm";
using Extend = uint32_t (*)(uint32_t, const char*, size_t);

TEST(RocksDbChecksum, IsTheSameInOurHardwareAsInItsSoftware) {
  // The file under test is linked.
  ASSERT_FALSE(Database::Open("/dev/null/nowhere", 1 << 20).ok());
  Dl_info library;
  ASSERT_NE(dladdr(reinterpret_cast<void*>(&rocksdb::GetRocksVersionAsString),
                   &library),
            0);
  void* rocksdb = dlopen(library.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(rocksdb, nullptr);
  const auto its = reinterpret_cast<Extend>(dlsym(rocksdb, kName));
  const auto called = reinterpret_cast<Extend>(dlsym(RTLD_DEFAULT, kName));
  ASSERT_NE(its, nullptr);
  ASSERT_NE(called, its);
  std::mt19937 random(1);
  for (size_t size = 0; size < 2000; size += 1 + size / 7) {
    std::string data(size, '\0');
    for (char& byte : data) byte = random();
    const uint32_t before = random();
    EXPECT_EQ(called(before, data.data(), size), its(before, data.data(), size))
        << size;
  }
}

}  // namespace
}  // namespace latentkv
