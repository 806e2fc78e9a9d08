// Blocks to frames and back. The one page that clients of the codec read.
#ifndef LATENTKV_CODEC_CODEC_H_
#define LATENTKV_CODEC_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "core/frame.h"
#include "core/geometry.h"
#include "kernels/pages.h"

namespace latentkv {

class Basis;  // codec/basis.h

// What a block is written with. `exact` ignores the step.
struct EncodeOptions {
  bool exact = true;
  float step = 0;            // Above 0 unless exact.
  float loss_own_max = 0;    // Guard: a block over it is encoded at half the step, then a quarter, then exact. 0: none.
  float loss_inherited = 0;  // loss_chain of the restored block it was computed on, 0 if none.
};

// Encodes and decodes blocks of one geometry. Thread-safe: const, no shared scratch.
class Codec {
 public:
  // `basis` may be null: then only `exact` is written and read. InvalidArgument if the basis was made for another
  // geometry.
  static absl::StatusOr<std::unique_ptr<Codec>> Create(Geometry geometry, std::shared_ptr<const Basis> basis);
  virtual ~Codec() = default;

  // The frame of one block. `block` points at kBlockTokens tokens of every layer, K rotated as the engine holds it,
  // in the block's raw form (kernels/pages.h, GatherBlock).
  virtual absl::StatusOr<Bytes> Encode(const Digest& key, uint32_t first_token, ByteSpan raw_block,
                                       const EncodeOptions& options) const = 0;

  // Checks that `header` is of this geometry, names `key` and `first_token`, and can be decoded here: OK, or
  // FailedPrecondition that says what differs.
  virtual absl::Status Check(const FrameHeader& header, const Digest& key, uint32_t first_token) const = 0;

  // Decodes section `section` (a group) of a frame with a checked `header`: verifies its checksum, restores the
  // group's layers and scatters them into `pages` at `slot`. DataLoss, and no page touched, if the bytes do not verify
  // or do not decode; whole or not at all.
  virtual absl::Status DecodeSection(const FrameHeader& header, uint32_t section, ByteSpan payload,
                                     const PagedCache& pages, absl::Span<const TokenRun> slot) const = 0;

  // Sections of a frame come in layer order: one a layer for `exact`, one a group of the basis otherwise. The layers
  // [first, last) that section `section` of `encoding` restores.
  virtual uint32_t SectionCount(const Encoding& encoding) const = 0;
  virtual std::pair<uint32_t, uint32_t> SectionLayers(const Encoding& encoding, uint32_t section) const = 0;

  virtual const Geometry& geometry() const = 0;
  virtual const Digest& geometry_digest() const = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_CODEC_H_
