// Latents that no symbol holds, as a section keeps them apart
// (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_ESCAPES_H_
#define LATENTKV_CODEC_ESCAPES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "core/bytes.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv {

inline constexpr size_t kEscapeBytes = 6;  // Place u32, latent i16.

inline void PutEscapes(const std::vector<LatentEscape>& escapes,
                       ByteWriter* writer) {
  for (const LatentEscape& escape : escapes) {
    writer->Put(escape.place);
    writer->Put(escape.latent);
  }
}

// Calls set(place, latent) for each of `escapes`. DataLoss unless they are
// those of `symbols`, in order.
template <typename Set>
absl::Status TakeEscapes(ByteSpan symbols, ByteSpan escapes, Set set) {
  const size_t count = escapes.size() / kEscapeBytes;
  bool fit = std::count(symbols.begin(), symbols.end(), kEscapeSymbol) ==
             static_cast<ptrdiff_t>(count);
  ByteReader reader(escapes);
  uint32_t next = 0;
  for (size_t e = 0; e < count && fit; ++e) {
    const uint32_t place = reader.Get<uint32_t>();
    const int16_t latent = reader.Get<int16_t>();
    fit = place >= next && place < symbols.size() &&
          symbols[place] == kEscapeSymbol;
    if (fit) set(place, latent);
    next = place + 1;
  }
  return fit ? absl::OkStatus()
             : absl::DataLossError(
                   "a section's escapes are not those of its symbols");
}

}  // namespace latentkv

#endif  // LATENTKV_CODEC_ESCAPES_H_
