// What is fuzzed: entries that take any bytes, and end the process where a
// reader breaks a promise.
#ifndef LATENTKV_TESTS_FUZZ_ENTRIES_H_
#define LATENTKV_TESTS_FUZZ_ENTRIES_H_

#include <vector>

#include "core/bytes.h"

namespace latentkv {

// A frame: as it is, and with its checksums made right.
void FuzzFrame(ByteSpan input);
// The first byte chooses group, block and step; the rest is a section's
// payload, read behind a right checksum.
void FuzzLatentSection(ByteSpan input);
// The same of a section that is well-formed: the second byte chooses flags and
// how many tokens are stored exact, bytes say which, and then each four bytes
// where a latent is and what. What lies behind the entropy coder is reached so.
void FuzzLatents(ByteSpan input);
// The first byte chooses type, heads and dimensions; the rest is a section's
// payload.
void FuzzExactSection(ByteSpan input);
// The first byte chooses geometry, layer and block; the rest is a section's
// payload, read behind a right checksum.
void FuzzScalarSection(ByteSpan input);
// A basis: as it is, and with its checksum made right; one that is accepted
// must encode and restore a block.
void FuzzBasis(ByteSpan input);

struct FuzzEntry {
  const char* name;
  void (*run)(ByteSpan input);
  std::vector<Bytes> seeds;  // Sound, most from tests/data/golden/.
  // What reached other code than the seeds do, from tests/fuzz/corpus/.
  std::vector<Bytes> corpus;
};
const std::vector<FuzzEntry>& FuzzEntries();

// A corpus as one file: of each input its length, u32, and its bytes.
Bytes PackCorpus(const std::vector<Bytes>& inputs);

}  // namespace latentkv

#endif  // LATENTKV_TESTS_FUZZ_ENTRIES_H_
