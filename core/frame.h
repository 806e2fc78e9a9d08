// The frame's envelope: what the daemon checks of a block without knowing what
// its bytes mean (docs/formats/frame.md).
#ifndef LATENTKV_CORE_FRAME_H_
#define LATENTKV_CORE_FRAME_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/encoding.h"

namespace latentkv {

inline constexpr uint32_t kFrameMagic = 0x464b764c;  // "LvKF"
inline constexpr uint16_t kFrameVersion = 1;

// Section g belongs to group g of the encoding: a run of layers, restored at
// once, behind those before it.
struct FrameSection {
  uint64_t offset = 0;  // From the frame's first byte.
  uint64_t bytes = 0;
  uint32_t crc32c = 0;  // Of the section's bytes.
};

struct FrameHeader {
  Digest key;
  Digest geometry;
  Encoding encoding;
  // Position of the block's first token in its chain; a multiple of
  // kBlockTokens.
  uint32_t first_token = 0;
  uint32_t token_count = 0;  // kBlockTokens.
  // Expected divergence that this block's coding adds, nats a token; 0 for
  // exact.
  float loss_own = 0;
  // loss_own plus what the blocks it was computed on brought; >= loss_own.
  float loss_chain = 0;
  std::vector<FrameSection> sections;
};

// Lays out header, section table, CRC-32C of both, then the sections' bytes.
// `header.sections` is ignored and filled from `sections`. InvalidArgument if
// there are none, too many, or the frame passes kFrameBytesMax.
absl::StatusOr<Bytes> WriteFrame(FrameHeader header,
                                 const std::vector<Bytes>& sections);

// The same in place: `frame` has room for the header, FrameHeaderBytes of the
// sections, and behind it the sections, of these lengths. Returns the frame's
// length.
absl::StatusOr<uint64_t> SealFrame(const FrameHeader& header,
                                   absl::Span<const uint64_t> section_bytes,
                                   uint8_t* frame);

// Reads and checks the header alone; `frame` may end behind it. DataLoss for a
// bad magic, length or header checksum; Unimplemented names an unknown version.
// Offsets and lengths are checked to tile [header end, frame_bytes) where
// frame_bytes is the frame's whole length.
absl::StatusOr<FrameHeader> ParseFrameHeader(ByteSpan frame,
                                             uint64_t frame_bytes);

// ParseFrameHeader over the whole frame, then every section's checksum.
// DataLoss names the first that differs.
absl::StatusOr<FrameHeader> VerifyFrame(ByteSpan frame);

// Bytes of the header with `section_count` sections.
uint64_t FrameHeaderBytes(uint32_t section_count);

}  // namespace latentkv

#endif  // LATENTKV_CORE_FRAME_H_
