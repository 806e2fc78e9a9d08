// A small model: its geometry, a basis, and blocks drawn from what the basis
// says of them. Drawn from integers without the mathematical library, so that
// every machine draws the same.
#ifndef LATENTKV_TESTS_CODEC_SYNTHETIC_H_
#define LATENTKV_TESTS_CODEC_SYNTHETIC_H_

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "codec/basis.h"
#include "codec/codec.h"
#include "codec/latent_section.h"
#include "core/bytes.h"
#include "core/geometry.h"
#include "kernels/pages.h"

namespace latentkv {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t Bits() { return engine_(); }
  uint32_t Below(uint32_t bound) {
    return static_cast<uint32_t>(engine_() % bound);
  }
  float Between(float low, float high) {
    return low +
           (high - low) * (static_cast<float>(engine_() >> 40) * 0x1p-24f);
  }
  float Normal();   // About: mean 0, deviation 1.
  float Laplace();  // About: mean magnitude 1.
  int8_t Signed(int bound) {
    return static_cast<int8_t>(static_cast<int>(Below(2 * bound + 1)) - bound);
  }

 private:
  std::mt19937_64 engine_;
};

// 4 layers of 2 heads of 16 dimensions; all rotate by halves, the last only 8
// dimensions, by neighbours.
Geometry SyntheticGeometry(DType dtype = DType::kBf16);

// 2 layers whose values have other dimensions than their keys: the first as of
// multi-head latent attention (4 rotated, a latent of 32), the second of 2
// heads whose values are narrower (6, of which 4 rotate, and 2). bf16.
Geometry ValueDimGeometry();

// The raw form of a block of any geometry: magnitudes about 1, and 16 times as
// large in the first tokens, as sinks are.
Bytes DrawBlock(const Geometry& geometry, uint64_t seed = 1);

struct SyntheticOptions {
  DType dtype = DType::kBf16;
  bool embedding = true;
  uint32_t inherited_rank = 4;
};

// The tokens whose sinks the basis knows.
inline constexpr uint32_t kKnownSinkTokens[] = {1, 17, 42, 5};

// 2 groups of 2 layers, 24 latents each; an embedding of 100 tokens, 8 dims and
// a history of 2; profiles high, balanced and small.
BasisParts SyntheticParts(const SyntheticOptions& options = {});

// The parts as a model that computes keys and values. Blocks are good at steps
// around 1.
class SyntheticModel {
 public:
  explicit SyntheticModel(const SyntheticOptions& options = {});

  const Geometry& geometry() const { return basis_->geometry(); }
  const std::shared_ptr<const Basis>& basis() const { return basis_; }
  const Codec& codec() const { return *codec_; }

  // A chain that begins with kKnownSinkTokens; all tokens are in the
  // vocabulary.
  std::vector<uint32_t> Tokens(size_t count, uint64_t seed = 1) const;
  // The raw form of the block at `first_token`; in a chain's first, the sinks
  // are the known ones.
  Bytes Block(const std::vector<uint32_t>& tokens, uint32_t first_token,
              uint64_t seed = 1) const;

 private:
  // Un-rotated values of group `group`, [kBlockTokens][channels].
  std::vector<float> DrawGroup(size_t group, absl::Span<const int16_t> features,
                               std::vector<float>* inherited,
                               Random* random) const;

  std::shared_ptr<const Basis> basis_;
  std::unique_ptr<Codec> codec_;
};

// The first block of a chain of `tokens`, or that at `first_token`.
BlockPlace PlaceOf(const std::vector<uint32_t>& tokens,
                   uint32_t first_token = 0);

// Memory of one block, laid out as the raw form is. Every byte is poison until
// it is written.
class BlockPages {
 public:
  static constexpr uint8_t kPoison = 0xa5;
  explicit BlockPages(const Geometry& geometry);
  const PagedCache& cache() const { return cache_; }
  const std::vector<TokenRun>& slot() const { return slot_; }
  const Bytes& raw() const { return memory_; }
  // Whether layers [first, last) are still poison.
  bool Untouched(uint32_t first, uint32_t last) const;

 private:
  Geometry geometry_;
  Bytes memory_;
  PagedCache cache_;
  std::vector<TokenRun> slot_;
};

// The sections of a frame that was just written.
std::vector<Bytes> SectionsOf(const Bytes& frame);
// The frame with other sections, all checksums right again.
Bytes WithSections(const Bytes& frame, const std::vector<Bytes>& sections);

// Section `section` of a frame of `encoding` into the pages of its layers; none
// is touched if it cannot be read.
absl::Status ReadInto(const Codec& codec, const Encoding& encoding,
                      uint32_t section, ByteSpan payload, BlockReader* reader,
                      BlockPages* pages);
// All of `frame` into `pages`.
absl::Status Restore(const Codec& codec, const Bytes& frame,
                     const BlockPlace& place, BlockPages* pages);
// The raw form that `frame` restores; a failure to restore it fails the test,
// and gives an empty one.
Bytes Restored(const Codec& codec, const Bytes& frame, const BlockPlace& place);

// What section `section` of a frame in the basis says.
LatentSection ReadSection(const SyntheticModel& model, const Bytes& frame,
                          uint32_t section);

// Un-rotated keys and values of the layers of `group`,
// [kBlockTokens][channels], from the raw form of all layers.
std::vector<float> ChannelsOf(const Geometry& geometry, const BasisGroup& group,
                              uint32_t first_token, const Bytes& raw);

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CODEC_SYNTHETIC_H_
