#include "client/c/latentkv_codec.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/c/boundary.h"
#include "client/c/whole_file.h"
#include "codec/basis.h"
#include "codec/codec.h"
#include "core/limits.h"

struct latentkv_codec {
  std::shared_ptr<const latentkv::Basis> basis;  // Null for exact alone.
  std::unique_ptr<latentkv::Codec> codec;
};

namespace latentkv::c_api {
namespace {

// A frame that no daemon sees has no chain: its key is zero.
constexpr Digest kNoKey;

absl::StatusOr<std::vector<BasisGroup>> GroupsOf(const latentkv_basis_group* groups, uint32_t group_count) {
  if (group_count > kGroupsMax) return absl::InvalidArgumentError(absl::StrCat(group_count, " groups"));
  std::vector<BasisGroup> result;
  for (uint32_t g = 0; g < group_count; ++g) {
    const latentkv_basis_group& from = groups[g];
    if (from.channels > kChannelsMax || from.rank > from.channels) {
      return absl::InvalidArgumentError(
          absl::StrCat("group ", g, " has ", from.channels, " channels and rank ", from.rank));
    }
    for (const void* array : {static_cast<const void*>(from.mean), static_cast<const void*>(from.row_scale),
                              static_cast<const void*>(from.weight), static_cast<const void*>(from.sensitivity),
                              static_cast<const void*>(from.latent_scale), static_cast<const void*>(from.decoder)}) {
      absl::Status status = NotNull(array, "an array of a group");
      if (!status.ok()) return status;
    }
    BasisGroup& group = result.emplace_back();
    group.first_layer = from.first_layer;
    group.last_layer = from.last_layer;
    group.channels = from.channels;
    group.rank = from.rank;
    group.mean.assign(from.mean, from.mean + from.channels);
    group.row_scale.assign(from.row_scale, from.row_scale + from.channels);
    group.weight.assign(from.weight, from.weight + from.channels);
    group.sensitivity.assign(from.sensitivity, from.sensitivity + from.channels);
    group.latent_scale.assign(from.latent_scale, from.latent_scale + from.rank);
    group.decoder.assign(from.decoder, from.decoder + uint64_t{from.rank} * from.channels);
  }
  return result;
}

absl::StatusOr<std::vector<Profile>> ProfilesOf(const latentkv_basis_profile* profiles, uint32_t profile_count) {
  std::vector<Profile> result;
  for (uint32_t i = 0; i < profile_count; ++i) {
    absl::Status status = NotNull(profiles[i].name, "a profile's name");
    if (!status.ok()) return status;
    result.push_back({profiles[i].name, profiles[i].step, profiles[i].loss_own_max});
  }
  return result;
}

// The raw form of one block, described as a cache of one page.
PagedCache PageOver(const Geometry& geometry, uint8_t* raw) {
  PagedCache pages;
  pages.page_tokens = kBlockTokens;
  pages.page_count = 1;
  for (const LayerGeometry& layer : geometry.layers) {
    const int64_t dim = DTypeBytes(layer.dtype), head = dim * layer.head_dim, token = head * layer.kv_heads;
    const PageStrides strides{0, token, head, dim};
    pages.layers.push_back({raw, raw + token * kBlockTokens, strides, strides});
    raw += 2 * token * kBlockTokens;
  }
  return pages;
}

absl::Status CheckRaw(const Codec& codec, const uint8_t* raw, size_t raw_bytes) {
  absl::Status status = NotNull(raw, "raw");
  if (!status.ok()) return status;
  const uint64_t expected = RawBytes(codec.geometry(), kBlockTokens);
  if (raw_bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("raw_bytes is ", raw_bytes, "; a block has ", expected));
}

absl::Status DecodeInto(const Codec& codec, uint32_t first_token, ByteSpan frame, uint8_t* raw) {
  absl::StatusOr<FrameHeader> header = VerifyFrame(frame);
  if (!header.ok()) return header.status();
  absl::Status status = codec.Check(*header, kNoKey, first_token);
  const PagedCache pages = PageOver(codec.geometry(), raw);
  const TokenRun whole{0, 0, kBlockTokens};
  for (uint32_t s = 0; s < header->sections.size() && status.ok(); ++s) {
    const FrameSection& section = header->sections[s];
    status = codec.DecodeSection(*header, s, frame.subspan(section.offset, section.bytes), pages, {&whole, 1});
  }
  return status;
}

}  // namespace
}  // namespace latentkv::c_api

using latentkv::ByteSpan;
using latentkv::c_api::Guarded;
using latentkv::c_api::NotNull;

latentkv_code latentkv_basis_write(const char* path, const latentkv_layer* layers, uint32_t layer_count,
                                   const latentkv_basis_group* groups, uint32_t group_count,
                                   const latentkv_basis_profile* profiles, uint32_t profile_count,
                                   const char* description, uint8_t* digest) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(path, "path");
    if (status.ok()) status = NotNull(groups, "groups");
    if (status.ok() && profile_count > 0) status = NotNull(profiles, "profiles");
    if (status.ok()) status = NotNull(digest, "digest");
    if (!status.ok()) return status;
    absl::StatusOr<latentkv::Geometry> geometry = latentkv::c_api::GeometryOf(layers, layer_count);
    if (!geometry.ok()) return geometry.status();
    auto read_groups = latentkv::c_api::GroupsOf(groups, group_count);
    if (!read_groups.ok()) return read_groups.status();
    auto read_profiles = latentkv::c_api::ProfilesOf(profiles, profile_count);
    if (!read_profiles.ok()) return read_profiles.status();
    auto basis = latentkv::Basis::Create(*std::move(geometry), *std::move(read_groups), *std::move(read_profiles),
                                         latentkv::c_api::TextOr(description, ""));
    if (!basis.ok()) return basis.status();
    status = latentkv::WriteWholeFile(path, (*basis)->serialized());
    if (status.ok()) std::copy((*basis)->digest().bytes.begin(), (*basis)->digest().bytes.end(), digest);
    return status;
  });
}

latentkv_code latentkv_codec_open(const char* basis_path, const latentkv_layer* layers, uint32_t layer_count,
                                  latentkv_codec** codec) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (!status.ok()) return status;
    *codec = nullptr;
    absl::StatusOr<latentkv::Geometry> geometry = latentkv::c_api::GeometryOf(layers, layer_count);
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

latentkv_code latentkv_codec_profile(latentkv_codec* codec, const char* name, float* step, float* loss_own_max) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(name, "name");
    if (status.ok()) status = NotNull(step, "step");
    if (status.ok()) status = NotNull(loss_own_max, "loss_own_max");
    if (!status.ok()) return status;
    if (codec->basis == nullptr) return absl::NotFoundError("the codec has no basis, hence no profiles");
    absl::StatusOr<latentkv::Profile> profile = codec->basis->FindProfile(name);
    if (!profile.ok()) return profile.status();
    *step = profile->step;
    *loss_own_max = profile->loss_own_max;
    return absl::OkStatus();
  });
}

latentkv_code latentkv_encode(latentkv_codec* codec, uint32_t first_token, const uint8_t* raw, size_t raw_bytes,
                              float step, float loss_own_max, uint8_t** frame, size_t* frame_bytes, float* loss_own) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(frame, "frame");
    if (status.ok()) status = NotNull(frame_bytes, "frame_bytes");
    if (status.ok()) status = latentkv::c_api::CheckRaw(*codec->codec, raw, raw_bytes);
    if (!status.ok()) return status;
    const latentkv::EncodeOptions options{step == 0, step, loss_own_max, 0};
    absl::StatusOr<latentkv::Bytes> encoded =
        codec->codec->Encode(latentkv::c_api::kNoKey, first_token, ByteSpan(raw, raw_bytes), options);
    if (!encoded.ok()) return encoded.status();
    if (loss_own != nullptr) {
      absl::StatusOr<latentkv::FrameHeader> header = latentkv::ParseFrameHeader(*encoded, encoded->size());
      if (!header.ok()) return header.status();
      *loss_own = header->loss_own;
    }
    return latentkv::c_api::CopyOut(encoded->data(), encoded->size(), frame, frame_bytes);
  });
}

latentkv_code latentkv_decode(latentkv_codec* codec, uint32_t first_token, const uint8_t* frame, size_t frame_bytes,
                              uint8_t* raw, size_t raw_bytes) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(codec, "codec");
    if (status.ok()) status = NotNull(frame, "frame");
    if (status.ok()) status = latentkv::c_api::CheckRaw(*codec->codec, raw, raw_bytes);
    if (!status.ok()) return status;
    return latentkv::c_api::DecodeInto(*codec->codec, first_token, ByteSpan(frame, frame_bytes), raw);
  });
}
