// The coders behind EncodeLatents and DecodeLatents, one a backend.
#ifndef LATENTKV_KERNELS_CPU_LATENT_ENTROPY_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_LATENT_ENTROPY_BACKENDS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "core/bytes.h"
#include "kernels/latent_entropy.h"

namespace latentkv::kernels {

// `latents` are class_of_row.size() rows of kBlockTokens.
CodedLatents EncodeLatentsPortable(const LatentTables& tables,
                                   absl::Span<const uint8_t> class_of_row,
                                   const int16_t* latents);
CodedLatents EncodeLatentsAvx512(const LatentTables& tables,
                                 absl::Span<const uint8_t> class_of_row,
                                 const int16_t* latents);

bool DecodeLatentsPortable(const LatentTables& tables,
                           absl::Span<const uint8_t> class_of_row,
                           ByteSpan words, uint32_t* states, uint8_t* symbols);
bool DecodeLatentsAvx2(const LatentTables& tables,
                       absl::Span<const uint8_t> class_of_row, ByteSpan words,
                       uint32_t* states, uint8_t* symbols);
bool DecodeLatentsAvx512(const LatentTables& tables,
                         absl::Span<const uint8_t> class_of_row, ByteSpan words,
                         uint32_t* states, uint8_t* symbols);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_LATENT_ENTROPY_BACKENDS_H_
