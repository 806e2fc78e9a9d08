// A libFuzzer target of one entry.
#include "tests/fuzz/entries.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  latentkv::FUZZ_ENTRY({data, size});
  return 0;
}
