#include "codec/codec.h"

#include <bit>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "codec/basis.h"
#include "codec/basis_view.h"
#include "codec/block_state.h"
#include "codec/exact_section.h"
#include "codec/expected_loss.h"
#include "codec/group_codec.h"
#include "codec/latent_model.h"
#include "codec/rotary_tables.h"
#include "codec/scalar_codec.h"
#include "core/checksum.h"
#include "core/limits.h"
#include "kernels/pages.h"

namespace latentkv {
namespace {

// The same for every codec, made once; never destroyed, since threads may
// decode to the last.
const LatentTables& SharedLatentTables() {
  static const LatentTables& tables = *new LatentTables(MakeLatentTables());
  return tables;
}

// What encoding and decoding in a basis need; null without one.
struct BasisCodec {
  BasisCodec(std::shared_ptr<const Basis> from,
             const LatentTables& latent_tables, RotaryTables* rotary_tables)
      : basis(std::move(from)),
        view(ViewOf(*basis, latent_tables)),
        expected_loss(*basis, latent_tables) {
    for (uint32_t g = 0; g < basis->groups().size(); ++g) {
      groups.push_back(std::make_unique<GroupCodec>(*basis, g, latent_tables,
                                                    rotary_tables));
    }
  }
  const std::shared_ptr<const Basis> basis;
  const BasisView view;
  const ExpectedLoss expected_loss;
  std::vector<std::unique_ptr<const GroupCodec>> groups;
};

size_t LayerBytes(const LayerGeometry& layer) {
  return size_t{layer.Channels()} * DTypeBytes(layer.dtype) * kBlockTokens;
}

bool AllFinite(absl::Span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t others = 0;  // Without a way out, a loop that becomes vectors.
  for (float value : values)
    others |=
        (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1u : 0u;
  return others == 0;
}

class FrameReader final : public BlockReader {
 public:
  // `in_basis` is null unless the frame is in it.
  FrameReader(FrameHeader header, const Geometry& geometry,
              const ScalarCodec& scalar, const BasisCodec* in_basis,
              const BlockPlace& place)
      : header_(std::move(header)),
        geometry_(geometry),
        scalar_(scalar),
        in_basis_(in_basis) {
    if (in_basis_ != nullptr) {
      state_ = std::make_unique<BlockState>(*in_basis_->basis,
                                            place.first_token, place.tokens);
    }
  }

  absl::Status ReadSection(uint32_t section, ByteSpan payload,
                           absl::Span<uint8_t> raw) override {
    if (section != next_section_ || section >= header_.sections.size()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "section ", section, " where ", next_section_, " comes next"));
    }
    if (payload.size() != header_.sections[section].bytes ||
        Crc32c(payload) != header_.sections[section].crc32c) {
      return absl::DataLossError(
          absl::StrCat("section ", section, " does not match its checksum"));
    }
    uint32_t first = section, last = section + 1;
    if (in_basis_ != nullptr) {
      first = in_basis_->groups[section]->group().first_layer;
      last = in_basis_->groups[section]->group().last_layer;
    }
    const uint64_t bytes = RawBytes(geometry_, first, last, kBlockTokens);
    if (raw.size() != bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(raw.size(), " bytes for a section of ", bytes));
    }
    absl::Status status = Decode(section, payload, raw);
    if (status.ok()) ++next_section_;
    return status;
  }

 private:
  absl::Status Decode(uint32_t section, ByteSpan payload,
                      absl::Span<uint8_t> raw) {
    if (in_basis_ != nullptr) {
      return in_basis_->groups[section]->Decode(payload, header_.encoding.step,
                                                state_.get(), raw);
    }
    if (header_.encoding.IsScalar())
      return scalar_.Decode(section, header_.first_token, payload, raw);
    return ReadExactSection(geometry_.layers[section], payload, raw);
  }

  const FrameHeader header_;
  const Geometry& geometry_;
  const ScalarCodec& scalar_;
  const BasisCodec* const in_basis_;
  std::unique_ptr<BlockState> state_;
  uint32_t next_section_ = 0;
};

class BlockCodec final : public Codec {
 public:
  BlockCodec(Geometry geometry, std::shared_ptr<const Basis> basis)
      : geometry_(std::move(geometry)),
        geometry_digest_(geometry_.ComputeDigest()),
        rotary_tables_(geometry_),
        scalar_(geometry_, latent_tables_, &rotary_tables_),
        in_basis_(basis == nullptr ? nullptr
                                   : std::make_unique<BasisCodec>(
                                         std::move(basis), latent_tables_,
                                         &rotary_tables_)) {}

  absl::StatusOr<Bytes> Encode(const BlockPlace& place, ByteSpan raw_block,
                               const EncodeOptions& options) const override {
    if (absl::Status status = CheckPlace(place); !status.ok()) return status;
    if (raw_block.size() != RawBytes(geometry_, kBlockTokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a raw block of ", raw_block.size(), " bytes, not ",
                       RawBytes(geometry_, kBlockTokens)));
    }
    FrameHeader header = HeaderOf(place);
    std::vector<Bytes> sections;
    absl::Status status =
        options.exact ? absl::OkStatus() : CheckLossy(options);
    if (!status.ok()) return status;
    if (options.exact) {
      status = EncodeExact(raw_block, &sections);
    } else if (in_basis_ != nullptr) {
      status = EncodeInBasis(place, raw_block, options, &header, &sections);
    } else {
      status = EncodeScalar(place.first_token, raw_block, options, &header,
                            &sections);
    }
    if (!status.ok()) return status;
    header.loss_chain = header.loss_own + options.loss_inherited;
    return WriteFrame(std::move(header), sections);
  }

  float SurpriseOf(uint32_t first_token, float step,
                   absl::Span<const uint64_t> section_bytes,
                   const uint8_t* frame) const override {
    std::vector<ByteSpan> sections;
    frame += FrameHeaderBytes(section_bytes.size());
    for (const uint64_t bytes : section_bytes) {
      sections.emplace_back(frame, bytes);
      frame += bytes;
    }
    return static_cast<float>(
        in_basis_->expected_loss.Surprise(step, first_token, sections));
  }

  absl::StatusOr<Bytes> Seal(const BlockPlace& place, float step,
                             float loss_own, float loss_inherited,
                             absl::Span<const uint64_t> section_bytes,
                             uint8_t* frame) const override {
    if (absl::Status status = CheckPlace(place); !status.ok()) return status;
    FrameHeader header = HeaderOf(place);
    if (in_basis_ == nullptr ||
        section_bytes.size() != in_basis_->groups.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          section_bytes.size(), " sections are no block in the basis"));
    }
    header.encoding = {in_basis_->basis->digest(), step};
    header.loss_own = loss_own;
    header.loss_chain = loss_own + loss_inherited;
    const absl::StatusOr<uint64_t> bytes =
        SealFrame(header, section_bytes, frame);
    if (!bytes.ok()) return bytes.status();
    return Bytes(frame, frame + *bytes);
  }

  absl::StatusOr<std::unique_ptr<BlockReader>> Open(
      FrameHeader header, const BlockPlace& place) const override {
    if (absl::Status status = CheckPlace(place); !status.ok()) return status;
    if (header.geometry != geometry_digest_)
      return absl::FailedPreconditionError("a frame of another geometry");
    if (header.key != place.key)
      return absl::FailedPreconditionError("a frame of another key");
    if (header.first_token != place.first_token) {
      return absl::FailedPreconditionError(
          absl::StrCat("a frame of tokens from ", header.first_token,
                       " on, not from ", place.first_token));
    }
    const bool in_basis = IsInBasis(header.encoding);
    if (!in_basis && !header.encoding.IsExact() &&
        !header.encoding.IsScalar()) {
      return absl::FailedPreconditionError(
          absl::StrCat("a frame encoded as ", header.encoding.ToString(),
                       ", a basis that is not here"));
    }
    if (header.sections.size() != SectionCount(header.encoding)) {
      return absl::FailedPreconditionError(
          absl::StrCat("a frame of ", header.sections.size(), " sections, not ",
                       SectionCount(header.encoding)));
    }
    return std::make_unique<FrameReader>(std::move(header), geometry_, scalar_,
                                         in_basis ? in_basis_.get() : nullptr,
                                         place);
  }

  uint32_t SectionCount(const Encoding& encoding) const override {
    return IsByLayer(encoding) ? geometry_.layers.size()
                               : in_basis_->groups.size();
  }

  std::pair<uint32_t, uint32_t> SectionLayers(const Encoding& encoding,
                                              uint32_t section) const override {
    if (IsByLayer(encoding)) return {section, section + 1};
    const BasisGroup& group = in_basis_->groups[section]->group();
    return {group.first_layer, group.last_layer};
  }

  const BasisView* basis_view() const override {
    return in_basis_ == nullptr ? nullptr : &in_basis_->view;
  }
  bool IsInBasis(const Encoding& encoding) const override {
    return in_basis_ != nullptr && encoding.basis == in_basis_->basis->digest();
  }

  const Geometry& geometry() const override { return geometry_; }
  const Digest& geometry_digest() const override { return geometry_digest_; }

 private:
  static bool IsByLayer(const Encoding& encoding) {
    return encoding.IsExact() || encoding.IsScalar();
  }

  FrameHeader HeaderOf(const BlockPlace& place) const {
    FrameHeader header;
    header.key = place.key;
    header.geometry = geometry_digest_;
    header.first_token = place.first_token;
    header.token_count = kBlockTokens;
    return header;
  }

  absl::Status CheckPlace(const BlockPlace& place) const {
    if (place.first_token % kBlockTokens == 0 &&
        place.tokens.size() == uint64_t{place.first_token} + kBlockTokens) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("a block from token ", place.first_token, " on with ",
                     place.tokens.size(), " tokens of its chain"));
  }

  absl::Status EncodeExact(ByteSpan raw_block,
                           std::vector<Bytes>* sections) const {
    size_t offset = 0;
    for (const LayerGeometry& layer : geometry_.layers) {
      absl::StatusOr<Bytes> section = WriteExactSection(
          layer, raw_block.subspan(offset, LayerBytes(layer)));
      if (!section.ok()) return section.status();
      sections->push_back(*std::move(section));
      offset += LayerBytes(layer);
    }
    return absl::OkStatus();
  }

  static absl::Status CheckLossy(const EncodeOptions& options) {
    if (!std::isfinite(options.step) || options.step <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("a step of ", options.step));
    }
    if (!(options.loss_own_max >= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a loss_own_max of ", options.loss_own_max));
    }
    return absl::OkStatus();
  }

  // The quantizer's sections of a block; OutOfRange where a layer has values
  // that it does not hold.
  absl::StatusOr<std::vector<Bytes>> ScalarSections(uint32_t first_token,
                                                    ByteSpan raw_block,
                                                    float step) const {
    std::vector<Bytes> sections;
    size_t offset = 0;
    for (uint32_t l = 0; l < geometry_.layers.size(); ++l) {
      const size_t bytes = LayerBytes(geometry_.layers[l]);
      absl::StatusOr<Bytes> section = scalar_.Encode(
          l, first_token, raw_block.subspan(offset, bytes), step);
      if (!section.ok()) return section.status();
      sections.push_back(*std::move(section));
      offset += bytes;
    }
    return sections;
  }

  // Sets the header's encoding and own loss: exact where a layer cannot be
  // quantized, or the step is too coarse.
  absl::Status EncodeScalar(uint32_t first_token, ByteSpan raw_block,
                            const EncodeOptions& options, FrameHeader* header,
                            std::vector<Bytes>* sections) const {
    float step = options.step;
    if (!std::isfinite(ScalarLoss(step)))
      return EncodeExact(raw_block, sections);
    for (int halvings = 0;
         options.loss_own_max > 0 && ScalarLoss(step) > options.loss_own_max;
         ++halvings) {
      if (halvings == kGuardHalvings) return EncodeExact(raw_block, sections);
      step /= 2;
    }
    absl::StatusOr<std::vector<Bytes>> coded =
        ScalarSections(first_token, raw_block, step);
    if (absl::IsOutOfRange(coded.status()))
      return EncodeExact(raw_block, sections);
    if (!coded.ok()) return coded.status();
    *sections = *std::move(coded);
    header->encoding = {ScalarQuantizer(), step};
    header->loss_own = ScalarLoss(step);
    return absl::OkStatus();
  }

  // A block in one encoding, and what that is expected to cost.
  struct Coded {
    Encoding encoding;
    double loss = 0;
    std::vector<Bytes> sections;

    bool Within(double loss_max) const {
      // As the header holds it.
      return std::isfinite(static_cast<float>(loss)) &&
             (loss_max == 0 || loss <= loss_max);
    }
    size_t ByteCount() const {
      return std::accumulate(
          sections.begin(), sections.end(), size_t{0},
          [](size_t sum, const auto& one) { return sum + one.size(); });
    }
  };
  // Channels of each group of the basis.
  using GroupChannels = std::vector<std::vector<float>>;

  GroupChannels ChannelsOf(uint32_t first_token, ByteSpan raw_block) const {
    GroupChannels channels;
    size_t offset = 0;
    for (const auto& group : in_basis_->groups) {
      channels.push_back(group->Channels(
          first_token, raw_block.subspan(offset, group->raw_bytes())));
      offset += group->raw_bytes();
    }
    return channels;
  }

  // Its loss is the error alone.
  absl::StatusOr<Coded> CodeInBasis(ByteSpan raw_block,
                                    const GroupChannels& channels, float step,
                                    BlockState* state) const {
    Coded coded = {{in_basis_->basis->digest(), step}, 0, {}};
    state->Restart();
    size_t offset = 0;
    for (size_t g = 0; g < channels.size(); ++g) {
      const GroupCodec& group = *in_basis_->groups[g];
      absl::StatusOr<EncodedSection> section =
          group.Encode(raw_block.subspan(offset, group.raw_bytes()),
                       channels[g], step, state);
      if (!section.ok()) return section.status();
      coded.sections.push_back(std::move(section->payload));
      coded.loss += section->loss;
      offset += group.raw_bytes();
    }
    return coded;
  }

  // The same without the basis, which says what the error is. OutOfRange as
  // ScalarSections.
  absl::StatusOr<Coded> CodeScalar(uint32_t first_token, ByteSpan raw_block,
                                   const GroupChannels& channels,
                                   float step) const {
    absl::StatusOr<std::vector<Bytes>> sections =
        ScalarSections(first_token, raw_block, step);
    if (!sections.ok()) return sections.status();
    Bytes restored(raw_block.size());
    size_t offset = 0;
    for (uint32_t l = 0; l < geometry_.layers.size(); ++l) {
      const size_t bytes = LayerBytes(geometry_.layers[l]);
      const absl::Status status =
          scalar_.Decode(l, first_token, (*sections)[l],
                         absl::MakeSpan(restored).subspan(offset, bytes));
      if (!status.ok()) return status;
      offset += bytes;
    }
    Coded coded = {{ScalarQuantizer(), step}, 0, *std::move(sections)};
    const GroupChannels after = ChannelsOf(first_token, restored);
    for (size_t g = 0; g < channels.size(); ++g)
      coded.loss +=
          in_basis_->groups[g]->Loss(first_token, channels[g], after[g]);
    return coded;
  }

  double SurpriseOf(const BlockPlace& place, const Coded& coded) const {
    return in_basis_->expected_loss.Surprise(
        coded.encoding.step, place.first_token,
        std::vector<ByteSpan>(coded.sections.begin(), coded.sections.end()));
  }

  // Sets the header's encoding and own loss. Over its bound a block is of text
  // that the basis does not know: the smallest of what keeps to the bound is
  // taken, and exact if nothing does.
  absl::Status EncodeInBasis(const BlockPlace& place, ByteSpan raw_block,
                             const EncodeOptions& options, FrameHeader* header,
                             std::vector<Bytes>* sections) const {
    const GroupChannels channels = ChannelsOf(place.first_token, raw_block);
    if (!absl::c_all_of(channels, AllFinite))
      return EncodeExact(raw_block, sections);
    std::optional<Coded> within;
    BlockState state(*in_basis_->basis, place.first_token, place.tokens);
    // Of the first step: finer ones take fewer bits over the expected ones of
    // the same text.
    double surprise = 1;
    bool climbed = false;
    for (int halvings = 0; halvings <= kGuardHalvings && !within; ++halvings) {
      absl::StatusOr<Coded> coded = CodeInBasis(
          raw_block, channels, std::ldexp(options.step, -halvings), &state);
      if (!coded.ok()) return coded.status();
      if (halvings == 0) surprise = SurpriseOf(place, *coded);
      coded->loss *= surprise;
      if (coded->Within(options.loss_own_max)) within = *std::move(coded);
      climbed = halvings > 0;
    }
    for (int halvings = 0;
         options.loss_own_max > 0 && climbed && halvings <= kGuardHalvings;
         ++halvings) {
      absl::StatusOr<Coded> coded =
          CodeScalar(place.first_token, raw_block, channels,
                     std::ldexp(kScalarStep, -halvings));
      if (absl::IsOutOfRange(coded.status())) break;
      if (!coded.ok()) return coded.status();
      coded->loss *= surprise;
      if (!coded->Within(options.loss_own_max)) continue;
      if (!within || coded->ByteCount() < within->ByteCount())
        within = *std::move(coded);
      break;
    }
    if (!within) return EncodeExact(raw_block, sections);
    header->encoding = within->encoding;
    header->loss_own = static_cast<float>(within->loss);
    *sections = std::move(within->sections);
    return absl::OkStatus();
  }

  const Geometry geometry_;
  const Digest geometry_digest_;
  const LatentTables& latent_tables_ = SharedLatentTables();
  RotaryTables rotary_tables_;
  const ScalarCodec scalar_;
  const std::unique_ptr<const BasisCodec> in_basis_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Codec>> Codec::Create(
    Geometry geometry, std::shared_ptr<const Basis> basis) {
  if (absl::Status status = geometry.Validate(); !status.ok()) return status;
  if (basis != nullptr && basis->geometry() != geometry) {
    return absl::InvalidArgumentError(
        absl::StrCat("the basis (", basis->description(),
                     ") was made for a model of another geometry"));
  }
  return std::make_unique<BlockCodec>(std::move(geometry), std::move(basis));
}

}  // namespace latentkv
