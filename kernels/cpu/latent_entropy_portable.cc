#include <cstdlib>
#include <vector>

#include "kernels/cpu/latent_context.h"
#include "kernels/cpu/latent_entropy_backends.h"
#include "kernels/cpu/rans.h"
#include "kernels/latents.h"

namespace latentkv::kernels {

CodedLatents EncodeLatentsPortable(const LatentTables& tables,
                                   absl::Span<const uint8_t> class_of_row,
                                   const int16_t* latents) {
  CodedLatents coded;
  std::vector<uint32_t> ranges(class_of_row.size() * kBlockTokens);
  LatentContext context(tables, class_of_row);
  for (size_t row = 0, i = 0; row < class_of_row.size(); ++row) {
    for (uint32_t t = 0; t < kBlockTokens; ++t, ++i) {
      const int q = latents[i];
      const uint32_t latent_class = context.Class(row, t);
      const bool escaped = std::abs(q) > tables.magnitude_max[latent_class];
      const uint8_t symbol =
          escaped ? kEscapeSymbol
                  : static_cast<uint8_t>(q < 0 ? -2 * q - 1 : 2 * q);
      if (escaped)
        coded.escapes.push_back({static_cast<uint32_t>(i), latents[i]});
      ranges[i] = tables.ranges[latent_class * 256 + symbol];
      context.Add(t, symbol);
    }
    context.EndRow(row);
  }
  RansEncoder encoder;
  for (size_t i = ranges.size(); i-- > 0;)
    encoder.Put(i % kEntropyLanes, ranges[i] & 0xffff, ranges[i] >> 16);
  coded.bytes = encoder.Finish();
  return coded;
}

bool DecodeLatentsPortable(const LatentTables& tables,
                           absl::Span<const uint8_t> class_of_row,
                           ByteSpan words, uint32_t* states, uint8_t* symbols) {
  const uint8_t* next = words.data();
  const uint8_t* const end = next + words.size();
  LatentContext context(tables, class_of_row);
  for (size_t row = 0; row < class_of_row.size(); ++row) {
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      const uint32_t* slots =
          tables.slots.data() + size_t{context.Class(row, t)} * kProbabilityOne;
      if (!DecodeSymbol(slots, &states[t % kEntropyLanes], &next, end, symbols))
        return false;
      context.Add(t, *symbols++);
    }
    context.EndRow(row);
  }
  return next == end;
}

}  // namespace latentkv::kernels
