#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"
#include "kernels/cpu/rans.h"

namespace latentkv::kernels {

bool DecodeLatentsPortable(const LatentTables& tables, absl::Span<const uint8_t> class_of_row, ByteSpan words,
                           uint32_t* states, uint8_t* symbols) {
  const uint8_t* next = words.data();
  const uint8_t* const end = next + words.size();
  LatentContext context(tables, class_of_row);
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const uint32_t* slots = tables.slots.data() + size_t{context.Class(row, t)} * kProbabilityOne;
      if (!DecodeSymbol(slots, &states[t % kEntropyLanes], &next, end, symbols)) return false;
      context.Add(t, *symbols++);
    }
    context.EndRow(row);
  }
  return next == end;
}

}  // namespace latentkv::kernels
