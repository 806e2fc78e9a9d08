#include "codec/codec.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "codec/basis.h"
#include "codec/exact_section.h"
#include "codec/group_codec.h"
#include "codec/latent_model.h"
#include "codec/rotary_tables.h"
#include "core/checksum.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr int kGuardHalvings = 2;  // A block over its bound is tried at half and a quarter of the step, then exact.

class BlockCodec final : public Codec {
 public:
  BlockCodec(Geometry geometry, std::shared_ptr<const Basis> basis)
      : geometry_(std::move(geometry)),
        geometry_digest_(geometry_.ComputeDigest()),
        basis_(std::move(basis)),
        tables_(geometry_) {
    if (basis_ == nullptr) return;
    for (const BasisGroup& group : basis_->groups()) {
      groups_.push_back(std::make_unique<GroupCodec>(geometry_, group, model_, &tables_));
    }
  }

  absl::StatusOr<Bytes> Encode(const Digest& key, uint32_t first_token, ByteSpan raw_block,
                               const EncodeOptions& options) const override {
    if (raw_block.size() != RawBytes(geometry_, kBlockTokens)) {
      return absl::InvalidArgumentError(absl::StrCat("a raw block of ", raw_block.size(), " bytes, not ",
                                                     RawBytes(geometry_, kBlockTokens)));
    }
    FrameHeader header;
    header.key = key;
    header.geometry = geometry_digest_;
    header.first_token = first_token;
    header.token_count = kBlockTokens;
    std::vector<Bytes> sections;
    absl::Status status = options.exact ? EncodeExact(raw_block, &sections)
                                        : EncodeInBasis(first_token, raw_block, options, &header, &sections);
    if (!status.ok()) return status;
    header.loss_chain = header.loss_own + options.loss_inherited;
    return WriteFrame(std::move(header), sections);
  }

  absl::Status Check(const FrameHeader& header, const Digest& key, uint32_t first_token) const override {
    if (header.geometry != geometry_digest_) return absl::FailedPreconditionError("a frame of another geometry");
    if (header.key != key) return absl::FailedPreconditionError("a frame of another key");
    if (header.first_token != first_token) {
      return absl::FailedPreconditionError(absl::StrCat("a frame of tokens from ", header.first_token, " on, not from ",
                                                        first_token));
    }
    if (!header.encoding.IsExact() && (basis_ == nullptr || header.encoding.basis != basis_->digest())) {
      return absl::FailedPreconditionError(absl::StrCat("a frame encoded as ", header.encoding.ToString(),
                                                        ", a basis that is not here"));
    }
    if (header.sections.size() != SectionCount(header.encoding)) {
      return absl::FailedPreconditionError(absl::StrCat("a frame of ", header.sections.size(), " sections, not ",
                                                        SectionCount(header.encoding)));
    }
    return absl::OkStatus();
  }

  absl::Status DecodeSection(const FrameHeader& header, uint32_t section, ByteSpan payload, const PagedCache& pages,
                             absl::Span<const TokenRun> slot) const override {
    if (section >= header.sections.size() || payload.size() != header.sections[section].bytes ||
        Crc32c(payload) != header.sections[section].crc32c) {
      return absl::DataLossError(absl::StrCat("section ", section, " does not match its checksum"));
    }
    const auto [first, last] = SectionLayers(header.encoding, section);
    size_t bytes = 0;
    for (uint32_t l = first; l < last; ++l) bytes += LayerBytes(l);
    const auto raw = std::make_unique_for_overwrite<uint8_t[]>(bytes);
    const absl::Span<uint8_t> span(raw.get(), bytes);
    absl::Status status =
        header.encoding.IsExact()
            ? ReadExactSection(geometry_.layers[first], payload, span)
            : groups_[section]->Decode(header.first_token, payload, header.encoding.step, span);
    if (!status.ok()) return status;
    ScatterRaw(geometry_, first, last, span, pages, slot);
    return absl::OkStatus();
  }

  uint32_t SectionCount(const Encoding& encoding) const override {
    return encoding.IsExact() ? geometry_.layers.size() : groups_.size();
  }

  std::pair<uint32_t, uint32_t> SectionLayers(const Encoding& encoding, uint32_t section) const override {
    if (encoding.IsExact()) return {section, section + 1};
    const BasisGroup& group = groups_[section]->group();
    return {group.first_layer, group.last_layer};
  }

  const Geometry& geometry() const override { return geometry_; }
  const Digest& geometry_digest() const override { return geometry_digest_; }

 private:
  size_t LayerBytes(uint32_t l) const {
    return 2 * size_t{geometry_.layers[l].KvChannels()} * DTypeBytes(geometry_.layers[l].dtype) * kBlockTokens;
  }

  absl::Status EncodeExact(ByteSpan raw_block, std::vector<Bytes>* sections) const {
    size_t offset = 0;
    for (uint32_t l = 0; l < geometry_.layers.size(); ++l) {
      absl::StatusOr<Bytes> section =
          WriteExactSection(geometry_.layers[l], raw_block.subspan(offset, LayerBytes(l)));
      if (!section.ok()) return section.status();
      sections->push_back(*std::move(section));
      offset += LayerBytes(l);
    }
    return absl::OkStatus();
  }

  // Sets the header's encoding and own loss: exact where the basis cannot hold the block within its bound.
  absl::Status EncodeInBasis(uint32_t first_token, ByteSpan raw_block, const EncodeOptions& options,
                             FrameHeader* header, std::vector<Bytes>* sections) const {
    if (basis_ == nullptr) return absl::FailedPreconditionError("without a basis only exact can be written");
    if (!std::isfinite(options.step) || options.step <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("a step of ", options.step));
    }
    if (!(options.loss_own_max >= 0)) {
      return absl::InvalidArgumentError(absl::StrCat("a loss_own_max of ", options.loss_own_max));
    }
    std::vector<std::vector<float>> channels, latents;
    size_t offset = 0;
    for (const auto& group : groups_) {
      channels.push_back(group->Channels(first_token, raw_block.subspan(offset, group->raw_bytes())));
      offset += group->raw_bytes();
      absl::StatusOr<std::vector<float>> projected = group->Project(channels.back());
      if (!projected.ok()) return projected.status();
      const auto finite = [](float value) { return std::isfinite(value); };
      if (!std::all_of(projected->begin(), projected->end(), finite)) return EncodeExact(raw_block, sections);
      latents.push_back(*std::move(projected));
    }
    for (int halvings = 0; halvings <= kGuardHalvings; ++halvings) {
      const float step = std::ldexp(options.step, -halvings);
      double loss = 0;
      sections->clear();
      offset = 0;
      for (size_t g = 0; g < groups_.size(); ++g) {
        const ByteSpan raw = raw_block.subspan(offset, groups_[g]->raw_bytes());
        absl::StatusOr<EncodedSection> section = groups_[g]->Encode(first_token, raw, channels[g], latents[g], step);
        if (!section.ok()) return section.status();
        sections->push_back(std::move(section->payload));
        loss += section->loss;
        offset += groups_[g]->raw_bytes();
      }
      if (!std::isfinite(loss) || (options.loss_own_max > 0 && loss > options.loss_own_max)) continue;
      header->encoding = {basis_->digest(), step};
      header->loss_own = static_cast<float>(loss);
      return absl::OkStatus();
    }
    sections->clear();
    return EncodeExact(raw_block, sections);
  }

  const Geometry geometry_;
  const Digest geometry_digest_;
  const std::shared_ptr<const Basis> basis_;
  const LatentModel model_;
  mutable RotaryTables tables_;  // A cache, with a lock of its own.
  std::vector<std::unique_ptr<GroupCodec>> groups_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> Codec::Create(Geometry geometry, std::shared_ptr<const Basis> basis) {
  if (absl::Status status = geometry.Validate(); !status.ok()) return status;
  if (basis != nullptr && basis->geometry() != geometry) {
    return absl::InvalidArgumentError(absl::StrCat("the basis (", basis->description(),
                                                   ") was made for a model of another geometry"));
  }
  return std::make_unique<BlockCodec>(std::move(geometry), std::move(basis));
}

}  // namespace latentkv
