// Blocks to frames and back. The one page that clients of the codec read.
#ifndef LATENTKV_CODEC_CODEC_H_
#define LATENTKV_CODEC_CODEC_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/frame.h"
#include "core/geometry.h"

namespace latentkv {

class Basis;       // codec/basis.h
struct BasisView;  // kernels/basis_view.h

// Steps that a block over its bound of loss is tried at behind the first, each
// half of the one before.
inline constexpr int kGuardHalvings = 2;

// What a block is written with. `exact` ignores the step, which is the basis's,
// or without one that of ScalarCodec.
struct EncodeOptions {
  bool exact = true;
  float step = 0;  // Above 0 unless exact.
  // Guard: a block over it is encoded at half the step, then a quarter, and
  // without the basis at ScalarCodec's step, half and a quarter of it; the
  // smaller of the first of each that keeps to it is taken, and exact if
  // nothing does. 0: none.
  float loss_own_max = 0;
  // loss_chain of the restored block it was computed on, 0 if none.
  float loss_inherited = 0;
};

// A block of kBlockTokens tokens in its chain.
struct BlockPlace {
  Digest key;
  uint32_t first_token = 0;
  // Of the chain up to the block's last: first_token + kBlockTokens of them.
  absl::Span<const uint32_t> tokens;
};

// Decodes the sections of one frame, which must come in order. One thread at a
// time; the codec outlives it.
class BlockReader {
 public:
  virtual ~BlockReader() = default;
  // Verifies the checksum of section `section` and restores its layers into
  // `raw`, their raw form (kernels/pages.h), which may be written in part if
  // that fails. DataLoss if the bytes do not verify or do not decode;
  // InvalidArgument for a `raw` of another size; FailedPrecondition for a
  // section that is not the next, or behind one that failed.
  virtual absl::Status ReadSection(uint32_t section, ByteSpan payload,
                                   absl::Span<uint8_t> raw) = 0;
};

// Encodes and decodes blocks of one geometry. Thread-safe.
class Codec {
 public:
  // `basis` may be null: then blocks are exact, or quantized without one; both
  // are read with a basis too. InvalidArgument if the basis was made for
  // another geometry.
  static absl::StatusOr<std::unique_ptr<Codec>> Create(
      Geometry geometry, std::shared_ptr<const Basis> basis);
  virtual ~Codec() = default;

  // The frame of one block. `raw_block` is its raw form (kernels/pages.h,
  // GatherRaw), K rotated as the engine holds it.
  virtual absl::StatusOr<Bytes> Encode(const BlockPlace& place,
                                       ByteSpan raw_block,
                                       const EncodeOptions& options) const = 0;

  // The factor that makes losses of a device's errors (EncodedBlock of
  // kernels/device.h), ExpectedLoss::Surprise: of a block's sections at `step`,
  // the first at which it is encoded, kept at finer ones. `frame` holds them
  // behind room for the header. There is a basis, and a length for each of its
  // groups.
  virtual float SurpriseOf(uint32_t first_token, float step,
                           absl::Span<const uint64_t> section_bytes,
                           const uint8_t* frame) const = 0;

  // The frame of a block that a device encoded at `step`, whose loss is
  // `loss_own`.
  virtual absl::StatusOr<Bytes> Seal(const BlockPlace& place, float step,
                                     float loss_own, float loss_inherited,
                                     absl::Span<const uint64_t> section_bytes,
                                     uint8_t* frame) const = 0;

  // Checks that `header` is of this geometry and this block and can be decoded
  // here; FailedPrecondition says what differs. `place.tokens` is copied as far
  // as it is needed.
  virtual absl::StatusOr<std::unique_ptr<BlockReader>> Open(
      FrameHeader header, const BlockPlace& place) const = 0;

  // Sections of a frame are in layer order: one a group of the basis, one a
  // layer without. The layers [first, last) that section `section` of
  // `encoding` restores. `encoding` is one that Open accepts.
  virtual uint32_t SectionCount(const Encoding& encoding) const = 0;
  virtual std::pair<uint32_t, uint32_t> SectionLayers(
      const Encoding& encoding, uint32_t section) const = 0;

  // The basis, for a device that restores its sections (kernels/device.h); null
  // without one. Valid as the codec is.
  virtual const BasisView* basis_view() const = 0;
  // Whether sections of `encoding` are groups of that basis.
  virtual bool IsInBasis(const Encoding& encoding) const = 0;

  virtual const Geometry& geometry() const = 0;
  virtual const Digest& geometry_digest() const = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_CODEC_H_
