#include "client/c/latentkv_codec.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/c/boundary.h"
#include "client/c/whole_file.h"
#include "codec/basis.h"
#include "codec/codec.h"
#include "codec/scalar_codec.h"
#include "codec/sinks.h"
#include "core/limits.h"
#include "kernels/pages.h"

struct latentkv_codec {
  std::shared_ptr<const latentkv::Basis> basis;  // Null for exact alone.
  std::unique_ptr<latentkv::Codec> codec;
};

namespace latentkv::c_api {
namespace {

// A frame that no daemon sees has no chain: its key is zero.
constexpr Digest kNoKey;

template <typename T>
absl::Status Copy(const T* from, uint64_t count, const char* name,
                  std::vector<T>* to) {
  absl::Status status = count == 0 ? absl::OkStatus() : NotNull(from, name);
  if (status.ok() && count > 0) to->assign(from, from + count);
  return status;
}

absl::Status CopyGroup(const latentkv_basis_group& from, uint64_t features,
                       uint64_t inherited, BasisGroup* to) {
  // Before anything is read by them; Basis::Create checks the rest.
  if (from.channels > kChannelsMax || from.rank > from.channels) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a group of ", from.channels, " channels and rank ", from.rank));
  }
  to->first_layer = from.first_layer;
  to->last_layer = from.last_layer;
  to->channels = from.channels;
  to->rank = from.rank;
  const uint64_t channels = from.channels;
  absl::Status status = Copy(from.mean, channels, "mean", &to->mean);
  status.Update(Copy(from.feature_scale, features > 0 ? channels : 0,
                     "feature_scale", &to->feature_scale));
  status.Update(Copy(from.row_scale, channels, "row_scale", &to->row_scale));
  status.Update(Copy(from.weight, channels, "weight", &to->weight));
  status.Update(
      Copy(from.sensitivity, channels, "sensitivity", &to->sensitivity));
  status.Update(
      Copy(from.latent_scale, from.rank, "latent_scale", &to->latent_scale));
  status.Update(Copy(from.decoder, (from.rank + inherited) * channels,
                     "decoder", &to->decoder));
  status.Update(Copy(from.feature_rows, features * channels, "feature_rows",
                     &to->feature_rows));
  return status;
}

// The sinks as a basis keeps them, of values in float.
absl::Status CopySinks(const latentkv_basis_sinks& from,
                       const Geometry& geometry, KnownSinks* to) {
  absl::Status status = NotNull(from.values, "sinks");
  if (!status.ok()) return status;
  std::copy(std::begin(from.tokens), std::end(from.tokens), to->tokens.begin());
  to->values = WriteSinks(geometry, from.values);
  return absl::OkStatus();
}

absl::StatusOr<BasisParts> PartsOf(const latentkv_basis& from) {
  BasisParts parts;
  absl::StatusOr<Geometry> geometry = GeometryOf(from.layers, from.layer_count);
  if (!geometry.ok()) return geometry.status();
  parts.geometry = *std::move(geometry);
  parts.description = TextOr(from.description, "");
  const uint64_t features = uint64_t{from.history} * from.dims;
  if (from.group_count > kGroupsMax || features > kChannelsMax ||
      from.inherited_rank > kChannelsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a basis of ", from.group_count, " groups, ", features,
                     " features and inherited_rank ", from.inherited_rank));
  }
  parts.embedding.vocabulary = from.vocabulary;
  parts.embedding.dims = from.dims;
  parts.embedding.history = from.history;
  parts.inherited_rank = from.inherited_rank;
  absl::Status status =
      Copy(from.embedding, uint64_t{from.vocabulary} * from.dims, "embedding",
           &parts.embedding.rows);
  if (from.profile_count > 0) status.Update(NotNull(from.profiles, "profiles"));
  if (from.sink_count > 0) status.Update(NotNull(from.sinks, "sinks"));
  status.Update(NotNull(from.groups, "groups"));
  for (uint32_t i = 0; i < from.profile_count && status.ok(); ++i) {
    const latentkv_basis_profile& profile = from.profiles[i];
    status = NotNull(profile.name, "a profile's name");
    if (status.ok())
      parts.profiles.push_back(
          {profile.name, profile.step, profile.loss_own_max});
  }
  for (uint32_t i = 0; i < from.sink_count && status.ok(); ++i) {
    status =
        CopySinks(from.sinks[i], parts.geometry, &parts.sinks.emplace_back());
  }
  for (uint32_t g = 0; g < from.group_count && status.ok(); ++g) {
    status =
        CopyGroup(from.groups[g], features, uint64_t{g} * from.inherited_rank,
                  &parts.groups.emplace_back());
  }
  if (!status.ok()) return status;
  return parts;
}

absl::Status CheckRaw(const Codec& codec, const uint8_t* raw,
                      size_t raw_bytes) {
  absl::Status status = NotNull(raw, "raw");
  if (!status.ok()) return status;
  const uint64_t expected = RawBytes(codec.geometry(), kBlockTokens);
  if (raw_bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("raw_bytes is ", raw_bytes, "; a block has ", expected));
}

absl::StatusOr<BlockPlace> PlaceOf(const uint32_t* tokens,
                                   uint32_t first_token) {
  absl::Status status = NotNull(tokens, "tokens");
  if (!status.ok()) return status;
  return BlockPlace{
      kNoKey, first_token, {tokens, size_t{first_token} + kBlockTokens}};
}

absl::Status DecodeInto(const Codec& codec, const BlockPlace& place,
                        ByteSpan frame, uint8_t* raw) {
  absl::StatusOr<FrameHeader> header = VerifyFrame(frame);
  if (!header.ok()) return header.status();
  absl::StatusOr<std::unique_ptr<BlockReader>> reader =
      codec.Open(*header, place);
  if (!reader.ok()) return reader.status();
  absl::Status status;
  for (uint32_t s = 0; s < header->sections.size() && status.ok(); ++s) {
    const FrameSection& section = header->sections[s];
    const auto [first, last] = codec.SectionLayers(header->encoding, s);
    const uint64_t bytes =
        RawBytes(codec.geometry(), first, last, kBlockTokens);
    status = (*reader)->ReadSection(
        s, frame.subspan(section.offset, section.bytes), {raw, bytes});
    raw += bytes;
  }
  return status;
}

}  // namespace
}  // namespace latentkv::c_api

using latentkv::ByteSpan;
using latentkv::c_api::Guarded;
using latentkv::c_api::NotNull;

latentkv_code latentkv_basis_write(const char* path,
                                   const latentkv_basis* basis,
                                   uint8_t* digest) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(path, "path");
    if (status.ok()) status = NotNull(basis, "basis");
    if (status.ok()) status = NotNull(digest, "digest");
    if (!status.ok()) return status;
    if (basis->struct_bytes != sizeof(*basis)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "struct_bytes is ", basis->struct_bytes, ", not ", sizeof(*basis)));
    }
    absl::StatusOr<latentkv::BasisParts> parts =
        latentkv::c_api::PartsOf(*basis);
    if (!parts.ok()) return parts.status();
    auto made = latentkv::Basis::Create(*std::move(parts));
    if (!made.ok()) return made.status();
    status = latentkv::WriteWholeFile(path, (*made)->serialized());
    if (status.ok())
      std::copy((*made)->digest().bytes.begin(), (*made)->digest().bytes.end(),
                digest);
    return status;
  });
}

latentkv_code latentkv_codec_open(const char* basis_path,
                                  const latentkv_layer* layers,
                                  uint32_t layer_count,
                                  latentkv_codec** codec) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (!status.ok()) return status;
    *codec = nullptr;
    absl::StatusOr<latentkv::Geometry> geometry =
        latentkv::c_api::GeometryOf(layers, layer_count);
    if (!geometry.ok()) return geometry.status();
    auto opened = std::make_unique<latentkv_codec>();
    if (basis_path != nullptr) {
      auto basis = latentkv::Basis::Load(basis_path);
      if (!basis.ok()) return basis.status();
      opened->basis = *std::move(basis);
    }
    auto made = latentkv::Codec::Create(*std::move(geometry), opened->basis);
    if (!made.ok()) return made.status();
    opened->codec = *std::move(made);
    *codec = opened.release();
    return absl::OkStatus();
  });
}

void latentkv_codec_close(latentkv_codec* codec) { delete codec; }

latentkv_code latentkv_codec_profile(latentkv_codec* codec, const char* name,
                                     float* step, float* loss_own_max) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(name, "name");
    if (status.ok()) status = NotNull(step, "step");
    if (status.ok()) status = NotNull(loss_own_max, "loss_own_max");
    if (!status.ok()) return status;
    if (codec->basis == nullptr) {
      if (name != absl::string_view(latentkv::kScalarProfile)) {
        return absl::NotFoundError(
            absl::StrCat("the codec has no basis, hence no profile but ",
                         latentkv::kScalarProfile));
      }
      *step = latentkv::kScalarStep;
      *loss_own_max = 0;
      return absl::OkStatus();
    }
    absl::StatusOr<latentkv::Profile> profile = codec->basis->FindProfile(name);
    if (!profile.ok()) return profile.status();
    *step = profile->step;
    *loss_own_max = profile->loss_own_max;
    return absl::OkStatus();
  });
}

latentkv_code latentkv_encode(latentkv_codec* codec, const uint32_t* tokens,
                              uint32_t first_token, const uint8_t* raw,
                              size_t raw_bytes, float step, float loss_own_max,
                              uint8_t** frame, size_t* frame_bytes,
                              float* loss_own) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(frame, "frame");
    if (status.ok()) status = NotNull(frame_bytes, "frame_bytes");
    if (status.ok())
      status = latentkv::c_api::CheckRaw(*codec->codec, raw, raw_bytes);
    if (!status.ok()) return status;
    const latentkv::EncodeOptions options{step == 0, step, loss_own_max, 0};
    absl::StatusOr<latentkv::BlockPlace> place =
        latentkv::c_api::PlaceOf(tokens, first_token);
    if (!place.ok()) return place.status();
    absl::StatusOr<latentkv::Bytes> encoded =
        codec->codec->Encode(*place, ByteSpan(raw, raw_bytes), options);
    if (!encoded.ok()) return encoded.status();
    if (loss_own != nullptr) {
      absl::StatusOr<latentkv::FrameHeader> header =
          latentkv::ParseFrameHeader(*encoded, encoded->size());
      if (!header.ok()) return header.status();
      *loss_own = header->loss_own;
    }
    return latentkv::c_api::CopyOut(encoded->data(), encoded->size(), frame,
                                    frame_bytes);
  });
}

latentkv_code latentkv_decode(latentkv_codec* codec, const uint32_t* tokens,
                              uint32_t first_token, const uint8_t* frame,
                              size_t frame_bytes, uint8_t* raw,
                              size_t raw_bytes) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(frame, "frame");
    if (status.ok())
      status = latentkv::c_api::CheckRaw(*codec->codec, raw, raw_bytes);
    if (!status.ok()) return status;
    absl::StatusOr<latentkv::BlockPlace> place =
        latentkv::c_api::PlaceOf(tokens, first_token);
    if (!place.ok()) return place.status();
    return latentkv::c_api::DecodeInto(*codec->codec, *place,
                                       ByteSpan(frame, frame_bytes), raw);
  });
}
