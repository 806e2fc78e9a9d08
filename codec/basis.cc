#include "codec/basis.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/checksum.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr uint32_t kBasisMagic = 0x424b764c;  // "LvKB"
constexpr uint16_t kBasisVersion = 0;         // 0 until the formats are frozen.
constexpr uint32_t kRankMax = 0xffff;         // A section counts its rows in 16 bits.
constexpr uint32_t kProfilesMax = 16;
constexpr uint32_t kProfileNameBytesMax = 32;
constexpr uint32_t kDescriptionBytesMax = 4096;
constexpr uint32_t kGeometryBytesMax = 4u << 20;  // kLayersMax layers of 512 frequencies, twice over.

std::string RangeFault(const char* name, absl::Span<const float> values, size_t count, bool negative_allowed) {
  if (values.size() != count) return absl::StrCat(name, " has ", values.size(), " values, not ", count);
  for (float value : values) {
    if (!std::isfinite(value) || (value < 0 && !negative_allowed)) return absl::StrCat(name, " holds ", value);
  }
  return "";
}

std::string GroupFault(const BasisGroup& group, const Geometry& geometry, uint32_t first_layer) {
  if (group.first_layer != first_layer || group.last_layer <= first_layer ||
      group.last_layer > geometry.layers.size()) {
    return absl::StrCat("layers [", group.first_layer, ", ", group.last_layer, ") where layer ", first_layer,
                        " comes next of ", geometry.layers.size());
  }
  uint64_t channels = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l) channels += 2 * geometry.layers[l].KvChannels();
  if (group.channels != channels || channels > kChannelsMax) return absl::StrCat(group.channels, " channels");
  if (group.rank == 0 || group.rank > channels || group.rank > kRankMax) return absl::StrCat("rank ", group.rank);
  for (const std::string& fault : {RangeFault("mean", group.mean, channels, true),
                                   RangeFault("row_scale", group.row_scale, channels, false),
                                   RangeFault("weight", group.weight, channels, false),
                                   RangeFault("sensitivity", group.sensitivity, channels, false),
                                   RangeFault("latent_scale", group.latent_scale, group.rank, false)}) {
    if (!fault.empty()) return fault;
  }
  if (!std::is_sorted(group.latent_scale.rbegin(), group.latent_scale.rend())) return "latent_scale does not descend";
  if (group.decoder.size() != size_t{group.rank} * channels) return "a decoder of the wrong size";
  // The product of the kernels is exact for magnitudes of at most 127.
  if (std::find(group.decoder.begin(), group.decoder.end(), -128) != group.decoder.end()) return "a decoder of -128";
  return "";
}

std::string ProfilesFault(const std::vector<Profile>& profiles) {
  if (profiles.size() > kProfilesMax) return absl::StrCat(profiles.size(), " profiles");
  std::set<std::string> names;
  for (const Profile& profile : profiles) {
    if (profile.name.empty() || profile.name.size() > kProfileNameBytesMax || profile.name == "exact" ||
        !names.insert(profile.name).second) {
      return absl::StrCat("a profile cannot be named \"", profile.name, "\"");
    }
    if (!std::isfinite(profile.step) || profile.step <= 0) return absl::StrCat("step ", profile.step);
    if (!std::isfinite(profile.loss_own_max) || profile.loss_own_max < 0) {
      return absl::StrCat("loss_own_max ", profile.loss_own_max);
    }
  }
  return "";
}

template <typename T>
ByteSpan Raw(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

// Empty where the bytes end first: nothing is allocated for lengths that are not there.
template <typename T>
std::vector<T> GetArray(ByteReader* reader, uint64_t count) {
  if (count > reader->remaining() / sizeof(T)) {
    reader->GetBytes(reader->remaining() + 1);
    return {};
  }
  std::vector<T> values(count);
  const ByteSpan bytes = reader->GetBytes(count * sizeof(T));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(values.data()));
  return values;
}

BasisGroup GetGroup(ByteReader* reader) {
  BasisGroup group;
  group.first_layer = reader->Get<uint32_t>();
  group.last_layer = reader->Get<uint32_t>();
  group.channels = reader->Get<uint32_t>();
  group.rank = reader->Get<uint32_t>();
  for (auto* values : {&group.mean, &group.row_scale, &group.weight, &group.sensitivity}) {
    *values = GetArray<float>(reader, group.channels);
  }
  group.latent_scale = GetArray<float>(reader, group.rank);
  group.decoder = GetArray<int8_t>(reader, uint64_t{group.rank} * group.channels);
  return group;
}

std::string GetText(ByteReader* reader, uint32_t bytes_max) {
  const uint32_t bytes = reader->Get<uint32_t>();
  // A longer one does not fit: the reader fails.
  return std::string(AsText(reader->GetBytes(bytes <= bytes_max ? bytes : reader->remaining() + 1)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Create(Geometry geometry, std::vector<BasisGroup> groups,
                                                           std::vector<Profile> profiles, std::string description) {
  if (absl::Status status = geometry.Validate(); !status.ok()) return status;
  uint32_t next_layer = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (const std::string fault = GroupFault(groups[g], geometry, next_layer); !fault.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("group ", g, " of the basis: ", fault));
    }
    next_layer = groups[g].last_layer;
  }
  if (next_layer != geometry.layers.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the basis covers ", next_layer, " of ", geometry.layers.size(), " layers"));
  }
  if (const std::string fault = ProfilesFault(profiles); !fault.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the basis has ", fault));
  }
  if (description.size() > kDescriptionBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("a description of ", description.size(), " bytes"));
  }
  std::shared_ptr<Basis> basis(new Basis());
  ByteWriter writer(&basis->serialized_);
  const Bytes geometry_bytes = geometry.Serialize();
  writer.Put(kBasisMagic);
  writer.Put(kBasisVersion);
  writer.Put<uint16_t>(0);
  writer.Put<uint32_t>(geometry_bytes.size());
  writer.PutBytes(geometry_bytes);
  writer.Put<uint32_t>(description.size());
  writer.PutBytes(AsBytes(description));
  writer.Put<uint32_t>(profiles.size());
  for (const Profile& profile : profiles) {
    writer.Put<uint32_t>(profile.name.size());
    writer.PutBytes(AsBytes(profile.name));
    writer.Put(profile.step);
    writer.Put(profile.loss_own_max);
  }
  writer.Put<uint32_t>(groups.size());
  for (const BasisGroup& group : groups) {
    for (uint32_t number : {group.first_layer, group.last_layer, group.channels, group.rank}) writer.Put(number);
    for (const auto* values :
         {&group.mean, &group.row_scale, &group.weight, &group.sensitivity, &group.latent_scale}) {
      writer.PutBytes(Raw(*values));
    }
    writer.PutBytes(Raw(group.decoder));
  }
  writer.Put(Crc32c(basis->serialized_));
  if (basis->serialized_.size() > kBasisBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("a basis of ", basis->serialized_.size(), " bytes, more than ",
                                                   kBasisBytesMax));
  }
  basis->digest_ = Sha256({basis->serialized_});
  basis->geometry_ = std::move(geometry);
  basis->groups_ = std::move(groups);
  basis->profiles_ = std::move(profiles);
  basis->description_ = std::move(description);
  return basis;
}

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Parse(ByteSpan bytes) {
  ByteReader reader(bytes);
  if (reader.Get<uint32_t>() != kBasisMagic) return absl::DataLossError("not a basis");
  if (const uint16_t version = reader.Get<uint16_t>(); reader.ok() && version != kBasisVersion) {
    return absl::UnimplementedError(
        absl::StrCat("a basis of version ", version, "; this reader knows ", kBasisVersion));
  }
  uint32_t checksum = 0;
  if (bytes.size() > sizeof(checksum)) {
    std::copy_n(bytes.end() - sizeof(checksum), sizeof(checksum), reinterpret_cast<uint8_t*>(&checksum));
  }
  if (bytes.size() <= sizeof(checksum) || Crc32c(bytes.first(bytes.size() - sizeof(checksum))) != checksum) {
    return absl::DataLossError("a basis that does not match its checksum");
  }
  const uint16_t reserved = reader.Get<uint16_t>();
  absl::StatusOr<Geometry> geometry = ParseGeometry(AsBytes(GetText(&reader, kGeometryBytesMax)));
  if (!geometry.ok()) return absl::DataLossError(geometry.status().message());
  std::string description = GetText(&reader, kDescriptionBytesMax);
  std::vector<Profile> profiles;
  for (uint32_t left = reader.Get<uint32_t>(); left > 0 && reader.ok() && profiles.size() <= kProfilesMax; --left) {
    Profile& profile = profiles.emplace_back();
    profile.name = GetText(&reader, kProfileNameBytesMax);
    profile.step = reader.Get<float>();
    profile.loss_own_max = reader.Get<float>();
  }
  std::vector<BasisGroup> groups;
  for (uint32_t left = reader.Get<uint32_t>(); left > 0 && reader.ok() && groups.size() <= kGroupsMax; --left) {
    groups.push_back(GetGroup(&reader));
  }
  if (!reader.ok() || reserved != 0 || reader.remaining() != sizeof(checksum)) {
    return absl::DataLossError("a basis of the wrong length");
  }
  auto basis = Create(*std::move(geometry), std::move(groups), std::move(profiles), std::move(description));
  if (!basis.ok()) return absl::DataLossError(basis.status().message());
  return basis;
}

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open the basis ", path));
  const std::streamoff size = file.tellg();
  if (size < 0 || static_cast<uint64_t>(size) > kBasisBytesMax) {
    return absl::DataLossError(absl::StrCat(path, " is not a basis"));
  }
  Bytes bytes(static_cast<size_t>(size));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), size)) {
    return absl::DataLossError(absl::StrCat("cannot read the basis ", path));
  }
  auto basis = Parse(bytes);
  if (!basis.ok()) return absl::Status(basis.status().code(), absl::StrCat(path, ": ", basis.status().message()));
  return basis;
}

absl::StatusOr<Profile> Basis::FindProfile(absl::string_view name) const {
  for (const Profile& profile : profiles_) {
    if (profile.name == name) return profile;
  }
  const std::string names = absl::StrJoin(profiles_, ", ", [](std::string* out, const Profile& profile) {
    absl::StrAppend(out, profile.name);
  });
  return absl::NotFoundError(absl::StrCat("no profile \"", name, "\" in the basis; there are: exact, ", names));
}

}  // namespace latentkv
