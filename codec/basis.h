// The offline artefact of one model (docs/formats/basis.md): per group of layers a mean, an int8 decoder, the weight of
// every channel and the scale of every latent. It holds no encoder: the encoder is the weighted least-squares inverse
// of the decoder, made once when a basis is opened for writing.
#ifndef LATENTKV_CODEC_BASIS_H_
#define LATENTKV_CODEC_BASIS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/bytes.h"
#include "core/digest.h"
#include "core/geometry.h"

namespace latentkv {

// Layers [first_layer, last_layer); channels C: for each layer in order, K un-rotated then V, [kv_heads, head_dim].
struct BasisGroup {
  uint32_t first_layer = 0, last_layer = 0;
  uint32_t channels = 0;  // C
  uint32_t rank = 0;      // R, latents in descending scale
  std::vector<float> mean;         // [C]
  std::vector<float> row_scale;    // [C] rho: y' = mean + rho * step * sum_r decoder[r][c] * q[r]
  std::vector<float> weight;       // [C] the weight of squared error that the encoder minimises
  std::vector<float> sensitivity;  // [C] nats a token for each unit of squared error, for the expected loss
  std::vector<float> latent_scale; // [R] mean magnitude of the latent, in units of the decoder
  std::vector<int8_t> decoder;     // [R][C]
};

struct Profile {
  std::string name;        // "high", "balanced", "small"
  float step = 0;
  float loss_own_max = 0;  // The guard's bound.
};

class Basis {
 public:
  // Checked against every bound of the format; InvalidArgument says which failed.
  static absl::StatusOr<std::shared_ptr<const Basis>> Create(Geometry geometry, std::vector<BasisGroup> groups,
                                                             std::vector<Profile> profiles, std::string description);
  // DataLoss for damaged bytes, Unimplemented for an unknown version.
  static absl::StatusOr<std::shared_ptr<const Basis>> Parse(ByteSpan bytes);
  // Parse of a file's content; NotFound if it cannot be opened.
  static absl::StatusOr<std::shared_ptr<const Basis>> Load(const std::string& path);

  const Bytes& serialized() const { return serialized_; }
  const Digest& digest() const { return digest_; }  // SHA-256 of serialized().
  const Geometry& geometry() const { return geometry_; }
  const std::vector<BasisGroup>& groups() const { return groups_; }
  const std::vector<Profile>& profiles() const { return profiles_; }
  const std::string& description() const { return description_; }
  // NotFound lists the profiles there are.
  absl::StatusOr<Profile> FindProfile(absl::string_view name) const;

 private:
  Basis() = default;
  Geometry geometry_;
  std::vector<BasisGroup> groups_;
  std::vector<Profile> profiles_;
  std::string description_;
  Bytes serialized_;
  Digest digest_;
};

}  // namespace latentkv

#endif  // LATENTKV_CODEC_BASIS_H_
