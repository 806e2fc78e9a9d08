#include "codec/basis.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "codec/sinks.h"
#include "core/checksum.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr uint32_t kBasisMagic = 0x424b764c;  // "LvKB"
constexpr uint16_t kBasisVersion = 1;
// Of a group, with the latents that it inherits: a section counts rows in 16
// bits, and sums of that many latents times 128 stay below 2^31.
constexpr uint32_t kRankMax = 0xffff;
constexpr uint32_t kProfilesMax = 16;
constexpr uint32_t kProfileNameBytesMax = 32;
constexpr uint32_t kDescriptionBytesMax = 4096;
// kLayersMax layers of 512 frequencies, twice over.
constexpr uint32_t kGeometryBytesMax = 4u << 20;
// Four times the largest vocabulary (256 K).
constexpr uint32_t kVocabularyMax = 1u << 20;
// Their sum stays exact: 1024 * 127 * 127 < 2^24.
constexpr uint32_t kFeaturesMax = 1024;
constexpr uint32_t kHistoryMax = 8;
constexpr uint32_t kInheritedRankMax = 1024;
constexpr uint32_t kSinksMax = 64;

std::string RangeFault(const char* name, absl::Span<const float> values,
                       size_t count, bool negative_allowed) {
  if (values.size() != count)
    return absl::StrCat(name, " has ", values.size(), " values, not ", count);
  for (float value : values) {
    if (!std::isfinite(value) || (value < 0 && !negative_allowed))
      return absl::StrCat(name, " holds ", value);
  }
  return "";
}

// The kernels' products are exact for magnitudes of at most 127.
std::string MatrixFault(const char* name, absl::Span<const int8_t> values,
                        uint64_t rows, uint64_t columns) {
  if (values.size() != rows * columns)
    return absl::StrCat(name, " has ", values.size(), " values");
  return std::find(values.begin(), values.end(), -128) != values.end()
             ? absl::StrCat(name, " holds -128")
             : "";
}

std::string GroupFault(const BasisParts& parts, size_t g,
                       uint32_t first_layer) {
  const BasisGroup& group = parts.groups[g];
  const std::vector<LayerGeometry>& layers = parts.geometry.layers;
  if (group.first_layer != first_layer || group.last_layer <= first_layer ||
      group.last_layer > layers.size()) {
    return absl::StrCat("layers [", group.first_layer, ", ", group.last_layer,
                        ") where layer ", first_layer, " comes next of ",
                        layers.size());
  }
  uint64_t channels = 0;
  for (uint32_t l = group.first_layer; l < group.last_layer; ++l)
    channels += layers[l].Channels();
  if (group.channels != channels || channels > kChannelsMax)
    return absl::StrCat(group.channels, " channels");
  const uint64_t features = parts.embedding.Features(),
                 inherited = g * uint64_t{parts.inherited_rank};
  if (group.rank == 0 || group.rank > channels ||
      group.rank + inherited > kRankMax) {
    return absl::StrCat("rank ", group.rank, " and inherits ", inherited);
  }
  for (const std::string& fault :
       {RangeFault("mean", group.mean, channels, true),
        RangeFault("feature_scale", group.feature_scale,
                   features > 0 ? channels : 0, false),
        RangeFault("row_scale", group.row_scale, channels, false),
        RangeFault("weight", group.weight, channels, false),
        RangeFault("sensitivity", group.sensitivity, channels, false),
        RangeFault("latent_scale", group.latent_scale, group.rank, false),
        MatrixFault("decoder", group.decoder, group.rank + inherited, channels),
        MatrixFault("feature_rows", group.feature_rows, features, channels)}) {
    if (!fault.empty()) return fault;
  }
  if (!std::is_sorted(group.latent_scale.rbegin(), group.latent_scale.rend()))
    return "latent_scale does not descend";
  return "";
}

std::string SharedFault(const BasisParts& parts) {
  const Embedding& embedding = parts.embedding;
  const uint64_t features = uint64_t{embedding.history} * embedding.dims;
  if ((embedding.vocabulary == 0) != (features == 0) ||
      embedding.vocabulary > kVocabularyMax ||
      embedding.history > kHistoryMax || features > kFeaturesMax) {
    return absl::StrCat("an embedding of ", embedding.vocabulary, " rows, ",
                        embedding.dims, " dims, ", embedding.history,
                        " tokens");
  }
  if (const std::string fault =
          MatrixFault("the embedding", embedding.rows, embedding.vocabulary,
                      embedding.dims);
      !fault.empty()) {
    return fault;
  }
  if (parts.inherited_rank > kInheritedRankMax)
    return absl::StrCat("inherited_rank ", parts.inherited_rank);
  if (parts.sinks.size() > kSinksMax)
    return absl::StrCat(parts.sinks.size(), " known sinks");
  for (const KnownSinks& sinks : parts.sinks) {
    if (sinks.values.size() !=
        SinkBytes(parts.geometry, 0, parts.geometry.layers.size())) {
      return absl::StrCat("known sinks of ", sinks.values.size(), " bytes");
    }
  }
  if (parts.description.size() > kDescriptionBytesMax) {
    return absl::StrCat("a description of ", parts.description.size(),
                        " bytes");
  }
  return "";
}

std::string ProfilesFault(const std::vector<Profile>& profiles) {
  if (profiles.size() > kProfilesMax)
    return absl::StrCat(profiles.size(), " profiles");
  std::set<std::string> names;
  for (const Profile& profile : profiles) {
    if (profile.name.empty() || profile.name.size() > kProfileNameBytesMax ||
        profile.name == "exact" || !names.insert(profile.name).second) {
      return absl::StrCat("a profile cannot be named \"", profile.name, "\"");
    }
    if (!std::isfinite(profile.step) || profile.step <= 0)
      return absl::StrCat("step ", profile.step);
    if (!std::isfinite(profile.loss_own_max) || profile.loss_own_max < 0) {
      return absl::StrCat("loss_own_max ", profile.loss_own_max);
    }
  }
  return "";
}

template <typename T>
ByteSpan Raw(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()),
          values.size() * sizeof(T)};
}

// Empty where the bytes end first: nothing is allocated for lengths that are
// not there.
template <typename T>
std::vector<T> GetArray(ByteReader* reader, uint64_t count) {
  if (count > reader->remaining() / sizeof(T)) {
    reader->GetBytes(reader->remaining() + 1);
    return {};
  }
  std::vector<T> values(count);
  const ByteSpan bytes = reader->GetBytes(count * sizeof(T));
  std::copy(bytes.begin(), bytes.end(),
            reinterpret_cast<uint8_t*>(values.data()));
  return values;
}

BasisGroup GetGroup(ByteReader* reader, const BasisParts& parts) {
  BasisGroup group;
  group.first_layer = reader->Get<uint32_t>();
  group.last_layer = reader->Get<uint32_t>();
  group.channels = reader->Get<uint32_t>();
  group.rank = reader->Get<uint32_t>();
  const uint64_t channels = group.channels,
                 features = parts.embedding.Features();
  group.mean = GetArray<float>(reader, channels);
  if (features > 0) group.feature_scale = GetArray<float>(reader, channels);
  for (auto* values : {&group.row_scale, &group.weight, &group.sensitivity})
    *values = GetArray<float>(reader, channels);
  group.latent_scale = GetArray<float>(reader, group.rank);
  // Below 2^32 rows of less than 2^32: no product leaves 64 bits.
  const uint64_t rows =
      group.rank + parts.groups.size() * uint64_t{parts.inherited_rank};
  group.decoder =
      GetArray<int8_t>(reader, std::min<uint64_t>(rows, 1u << 31) * channels);
  group.feature_rows = GetArray<int8_t>(reader, features * channels);
  return group;
}

std::string GetText(ByteReader* reader, uint32_t bytes_max) {
  const uint32_t bytes = reader->Get<uint32_t>();
  // A longer one does not fit: the reader fails.
  return std::string(AsText(
      reader->GetBytes(bytes <= bytes_max ? bytes : reader->remaining() + 1)));
}

Bytes Serialize(const BasisParts& parts) {
  Bytes bytes;
  ByteWriter writer(&bytes);
  const auto put_text = [&](ByteSpan text) {
    writer.Put<uint32_t>(text.size());
    writer.PutBytes(text);
  };
  writer.Put(kBasisMagic);
  writer.Put(kBasisVersion);
  writer.Put<uint16_t>(0);
  put_text(parts.geometry.Serialize());
  put_text(AsBytes(parts.description));
  writer.Put<uint32_t>(parts.profiles.size());
  for (const Profile& profile : parts.profiles) {
    put_text(AsBytes(profile.name));
    writer.Put(profile.step);
    writer.Put(profile.loss_own_max);
  }
  const Embedding& embedding = parts.embedding;
  for (uint32_t number :
       {embedding.vocabulary, embedding.dims, embedding.history})
    writer.Put(number);
  writer.PutBytes(Raw(embedding.rows));
  writer.Put(parts.inherited_rank);
  writer.Put<uint32_t>(parts.sinks.size());
  for (const KnownSinks& sinks : parts.sinks) {
    for (uint32_t token : sinks.tokens) writer.Put(token);
    writer.PutBytes(sinks.values);
  }
  writer.Put<uint32_t>(parts.groups.size());
  for (const BasisGroup& group : parts.groups) {
    for (uint32_t number :
         {group.first_layer, group.last_layer, group.channels, group.rank})
      writer.Put(number);
    for (const auto* values :
         {&group.mean, &group.feature_scale, &group.row_scale, &group.weight,
          &group.sensitivity, &group.latent_scale}) {
      writer.PutBytes(Raw(*values));
    }
    writer.PutBytes(Raw(group.decoder));
    writer.PutBytes(Raw(group.feature_rows));
  }
  writer.Put(Crc32c(bytes));
  return bytes;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Create(BasisParts parts) {
  if (absl::Status status = parts.geometry.Validate(); !status.ok())
    return status;
  for (const std::string& fault :
       {SharedFault(parts), ProfilesFault(parts.profiles)}) {
    if (!fault.empty())
      return absl::InvalidArgumentError(absl::StrCat("the basis has ", fault));
  }
  uint32_t next_layer = 0;
  for (size_t g = 0; g < parts.groups.size(); ++g) {
    if (const std::string fault = GroupFault(parts, g, next_layer);
        !fault.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("group ", g, " of the basis: ", fault));
    }
    next_layer = parts.groups[g].last_layer;
  }
  if (next_layer != parts.geometry.layers.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the basis covers ", next_layer, " of ",
                     parts.geometry.layers.size(), " layers"));
  }
  std::shared_ptr<Basis> basis(new Basis());
  basis->serialized_ = Serialize(parts);
  if (basis->serialized_.size() > kBasisBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a basis of ", basis->serialized_.size(),
                     " bytes, more than ", kBasisBytesMax));
  }
  basis->digest_ = Sha256({basis->serialized_});
  basis->parts_ = std::move(parts);
  return basis;
}

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Parse(ByteSpan bytes) {
  ByteReader reader(bytes);
  if (reader.Get<uint32_t>() != kBasisMagic)
    return absl::DataLossError("not a basis");
  if (const uint16_t version = reader.Get<uint16_t>();
      reader.ok() && version != kBasisVersion) {
    return absl::UnimplementedError(absl::StrCat(
        "a basis of version ", version, "; this reader knows ", kBasisVersion));
  }
  uint32_t checksum = 0;
  if (bytes.size() > sizeof(checksum)) {
    std::copy_n(bytes.end() - sizeof(checksum), sizeof(checksum),
                reinterpret_cast<uint8_t*>(&checksum));
  }
  if (bytes.size() <= sizeof(checksum) ||
      Crc32c(bytes.first(bytes.size() - sizeof(checksum))) != checksum) {
    return absl::DataLossError("a basis that does not match its checksum");
  }
  const uint16_t reserved = reader.Get<uint16_t>();
  absl::StatusOr<Geometry> geometry =
      ParseGeometry(AsBytes(GetText(&reader, kGeometryBytesMax)));
  if (!geometry.ok()) return absl::DataLossError(geometry.status().message());
  BasisParts parts;
  parts.geometry = *std::move(geometry);
  parts.description = GetText(&reader, kDescriptionBytesMax);
  for (uint32_t left = reader.Get<uint32_t>();
       left > 0 && reader.ok() && parts.profiles.size() <= kProfilesMax;
       --left) {
    Profile& profile = parts.profiles.emplace_back();
    profile.name = GetText(&reader, kProfileNameBytesMax);
    profile.step = reader.Get<float>();
    profile.loss_own_max = reader.Get<float>();
  }
  parts.embedding.vocabulary = reader.Get<uint32_t>();
  parts.embedding.dims = reader.Get<uint32_t>();
  parts.embedding.history = reader.Get<uint32_t>();
  parts.embedding.rows = GetArray<int8_t>(
      &reader, uint64_t{parts.embedding.vocabulary} * parts.embedding.dims);
  parts.inherited_rank = reader.Get<uint32_t>();
  const size_t sink_bytes =
      SinkBytes(parts.geometry, 0, parts.geometry.layers.size());
  for (uint32_t left = reader.Get<uint32_t>();
       left > 0 && reader.ok() && parts.sinks.size() <= kSinksMax; --left) {
    KnownSinks& sinks = parts.sinks.emplace_back();
    for (uint32_t& token : sinks.tokens) token = reader.Get<uint32_t>();
    sinks.values = GetArray<uint8_t>(&reader, sink_bytes);
  }
  // Checked before groups are read by them.
  if (const std::string fault = SharedFault(parts);
      reader.ok() && !fault.empty())
    return absl::DataLossError(fault);
  for (uint32_t left = reader.Get<uint32_t>();
       left > 0 && reader.ok() && parts.groups.size() <= kGroupsMax; --left) {
    BasisGroup group = GetGroup(&reader, parts);
    parts.groups.push_back(std::move(group));
  }
  if (!reader.ok() || reserved != 0 || reader.remaining() != sizeof(checksum)) {
    return absl::DataLossError("a basis of the wrong length");
  }
  auto basis = Create(std::move(parts));
  if (!basis.ok()) return absl::DataLossError(basis.status().message());
  return basis;
}

absl::StatusOr<std::shared_ptr<const Basis>> Basis::Load(
    const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file)
    return absl::NotFoundError(absl::StrCat("cannot open the basis ", path));
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
  if (!basis.ok())
    return absl::Status(basis.status().code(),
                        absl::StrCat(path, ": ", basis.status().message()));
  return basis;
}

absl::StatusOr<Profile> Basis::FindProfile(absl::string_view name) const {
  for (const Profile& profile : parts_.profiles) {
    if (profile.name == name) return profile;
  }
  const std::string names = absl::StrJoin(
      parts_.profiles, ", ", [](std::string* out, const Profile& profile) {
        absl::StrAppend(out, profile.name);
      });
  return absl::NotFoundError(absl::StrCat(
      "no profile \"", name, "\" in the basis; there are: exact, ", names));
}

}  // namespace latentkv
