// The offline artefact of one model (docs/formats/basis.md): per group of
// layers a mean, int8 decoders and the scale of every latent; for all groups
// the embeddings that predict them. It holds no encoder: the encoder is the
// weighted least-squares inverse of the decoder, made once when a basis is
// opened for writing.
#ifndef LATENTKV_CODEC_BASIS_H_
#define LATENTKV_CODEC_BASIS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/geometry.h"
#include "core/limits.h"

namespace latentkv {

// What a reader knows of a token without being sent it: its row, and those of
// the tokens before it.
struct Embedding {
  // Rows; a token at or above it has no features. 0: no prediction from tokens.
  uint32_t vocabulary = 0;
  uint32_t dims = 0;
  // Tokens whose rows are the features of one: itself, the one before, ...
  uint32_t history = 0;
  std::vector<int8_t> rows;  // [vocabulary][dims]
  uint32_t Features() const { return history * dims; }
};

// Layers [first_layer, last_layer); channels C: for each layer in order, K
// un-rotated then V, [kv_heads, DimOf(keys)]. With a step D and latents q, own
// and inherited, and features f:
//   base[c] = mean[c] + feature_scale[c] * sum_j feature_rows[j][c] * f[j]
//   y'[c]   = base[c] + row_scale[c] * D * sum_r decoder[r][c] * q[r]
struct BasisGroup {
  uint32_t first_layer = 0, last_layer = 0;
  uint32_t channels = 0;             // C
  uint32_t rank = 0;                 // R, own latents in descending scale
  std::vector<float> mean;           // [C]
  std::vector<float> feature_scale;  // [C], empty without features
  std::vector<float> row_scale;      // [C]
  // [C] the weight of squared error that the encoder minimises
  std::vector<float> weight;
  // [C] nats a token for each unit of squared error, for the expected loss
  std::vector<float> sensitivity;
  // [R] mean magnitude of the latent, in units of the decoder
  std::vector<float> latent_scale;
  // [R + inherited][C]: own latents, then those of each earlier group in order
  std::vector<int8_t> decoder;
  std::vector<int8_t> feature_rows;  // [features][C]
};

struct Profile {
  std::string name;  // "high", "balanced", "small"
  float step = 0;
  float loss_own_max = 0;  // The guard's bound.
};

// The sinks of chains that begin with `tokens`, as WriteSinks of codec/sinks.h
// makes them over all layers.
struct KnownSinks {
  std::array<uint32_t, kSinkTokens> tokens{};
  Bytes values;
};

struct BasisParts {
  Geometry geometry;
  std::string description;
  std::vector<Profile> profiles;
  Embedding embedding;
  // How many leading latents of each group all later groups use.
  uint32_t inherited_rank = 0;
  std::vector<KnownSinks> sinks;
  std::vector<BasisGroup> groups;
};

class Basis {
 public:
  // Checked against every bound of the format; InvalidArgument says which
  // failed.
  static absl::StatusOr<std::shared_ptr<const Basis>> Create(BasisParts parts);
  // DataLoss for damaged bytes, Unimplemented for an unknown version.
  static absl::StatusOr<std::shared_ptr<const Basis>> Parse(ByteSpan bytes);
  // Parse of a file's content; NotFound if it cannot be opened.
  static absl::StatusOr<std::shared_ptr<const Basis>> Load(
      const std::string& path);

  const Bytes& serialized() const { return serialized_; }
  const Digest& digest() const { return digest_; }  // SHA-256 of serialized().
  const Geometry& geometry() const { return parts_.geometry; }
  const std::string& description() const { return parts_.description; }
  const std::vector<Profile>& profiles() const { return parts_.profiles; }
  const Embedding& embedding() const { return parts_.embedding; }
  uint32_t inherited_rank() const { return parts_.inherited_rank; }
  const std::vector<KnownSinks>& sinks() const { return parts_.sinks; }
  const std::vector<BasisGroup>& groups() const { return parts_.groups; }
  // NotFound lists the profiles there are.
  absl::StatusOr<Profile> FindProfile(absl::string_view name) const;

 private:
  Basis() = default;
  BasisParts parts_;
  Bytes serialized_;
  Digest digest_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_BASIS_H_
