// Explains a frame or a basis in plain words, and says which of its bytes do
// not verify.
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "codec/basis.h"
#include "codec/latent_model.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "core/limits.h"
#include "tools/text.h"
#include "tools/verb.h"

namespace latentkv {
namespace {

constexpr char kHelp[] = R"(usage: latentkv inspect FILE [flags]

Explains a frame (one stored block) or a basis: what it is, what it was made for, how large its parts are, what loss is
expected of it, and whether every checksum is right. Exit status 1 if one is not.
)";

absl::StatusOr<Bytes> ReadFile(const std::string& path) {
  struct stat info {};
  std::ifstream file(path, std::ios::binary);
  if (stat(path.c_str(), &info) != 0 || !file)
    return absl::NotFoundError(std::strerror(errno));
  if (!S_ISREG(info.st_mode))
    return absl::InvalidArgumentError("it is no regular file");
  if (static_cast<uint64_t>(info.st_size) > kBasisBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("neither a frame nor a basis has more than ",
                     kBasisBytesMax, " bytes"));
  }
  Bytes bytes(info.st_size);
  file.read(reinterpret_cast<char*>(bytes.data()), bytes.size());
  if (!file)
    return absl::UnavailableError(
        absl::StrCat("it could not be read: ", std::strerror(errno)));
  return bytes;
}

std::string ExplainHeader(const FrameHeader& header, size_t frame_bytes) {
  std::string text = absl::StrFormat(
      "a frame, version %d: block %d of a chain, %d tokens from position %d\n",
      kFrameVersion, header.first_token / kBlockTokens, header.token_count,
      header.first_token);
  absl::StrAppend(&text, "  chain key      ", header.key.Hex(),
                  "\n  geometry       ", header.geometry.Hex(), "\n");
  if (header.encoding.IsExact()) {
    absl::StrAppend(&text, "  encoding       exact: the engine's own bits\n");
  } else if (header.encoding.IsScalar()) {
    absl::StrAppendFormat(
        &text, "  encoding       quantized without a basis, step %.4g\n",
        header.encoding.step);
  } else {
    absl::StrAppendFormat(&text, "  encoding       step %.4g in basis %s\n",
                          header.encoding.step, header.encoding.basis.Hex());
  }
  absl::StrAppendFormat(&text,
                        "  expected loss  %.3g nats a token of its own, %.3g "
                        "with what it was computed on\n",
                        header.loss_own, header.loss_chain);
  absl::StrAppendFormat(
      &text,
      "  size           %s, %.1f bytes a token; %d of header and checksums\n",
      HumanBytes(frame_bytes),
      static_cast<double>(frame_bytes) / header.token_count,
      FrameHeaderBytes(header.sections.size()));
  return text;
}

Outcome ExplainFrame(ByteSpan frame) {
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(frame, frame.size());
  if (!header.ok())
    return Outcome::Failed(
        absl::StrCat("as a frame: ", header.status().message()));
  Outcome outcome = Outcome::Done(ExplainHeader(*header, frame.size()));
  absl::StrAppend(&outcome.output, "  sections       one a ",
                  header->encoding.IsExact() || header->encoding.IsScalar()
                      ? "layer"
                      : "group of layers",
                  ":\n");
  for (size_t i = 0; i < header->sections.size(); ++i) {
    const FrameSection& section = header->sections[i];
    const std::string place =
        absl::StrFormat("section %d, bytes [%d, %d)", i, section.offset,
                        section.offset + section.bytes);
    const bool whole =
        Crc32c(frame.subspan(section.offset, section.bytes)) == section.crc32c;
    absl::StrAppendFormat(
        &outcome.output, "    %-36s  %8.1f a token  %s\n", place,
        static_cast<double>(section.bytes) / header->token_count,
        whole ? "whole" : "DAMAGED");
    if (whole) continue;
    outcome.exit_status = 1;
    absl::StrAppend(&outcome.error, outcome.error.empty() ? "" : "; ", place,
                    " does not match its checksum");
  }
  return outcome;
}

std::string ExplainBasis(const Basis& basis) {
  const Geometry& geometry = basis.geometry();
  std::string text = absl::StrFormat(
      "a basis, %s, for a model of %d layers with %d bytes of keys and values "
      "a token\n",
      HumanBytes(basis.serialized().size()), geometry.layers.size(),
      geometry.BytesPerToken());
  absl::StrAppend(&text, "  digest         ", basis.digest().Hex(),
                  "\n  geometry       ", geometry.ComputeDigest().Hex(),
                  "\n  made from      ", Printable(basis.description()), "\n");
  for (const Profile& profile : basis.profiles()) {
    absl::StrAppendFormat(&text,
                          "  profile        %-9s step %.4g; a block over %.3g "
                          "nats a token is coded finer\n",
                          Printable(profile.name), profile.step,
                          profile.loss_own_max);
  }
  for (const BasisGroup& group : basis.groups()) {
    absl::StrAppendFormat(&text, "  layers %3d-%-3d  %d channels, %d latents",
                          group.first_layer, group.last_layer - 1,
                          group.channels, group.rank);
    for (const Profile& profile : basis.profiles()) {
      absl::StrAppendFormat(&text, ", %d coded at %s",
                            LiveRank(group.latent_scale, profile.step),
                            Printable(profile.name));
    }
    text += "\n";
  }
  return text;
}

Outcome Explain(ByteSpan bytes) {
  // The magic numbers of docs/formats/frame.md and basis.md, as text.
  if (absl::StartsWith(AsText(bytes), "LvKF")) return ExplainFrame(bytes);
  if (!absl::StartsWith(AsText(bytes), "LvKB")) {
    return Outcome::Failed(
        "neither a frame nor a basis: it begins with neither LvKF nor LvKB");
  }
  absl::StatusOr<std::shared_ptr<const Basis>> basis = Basis::Parse(bytes);
  if (basis.ok()) return Outcome::Done(ExplainBasis(**basis));
  return Outcome::Failed(
      absl::StrCat("as a basis: ", basis.status().message()));
}

Outcome RunInspect(const Invocation& invocation) {
  if (invocation.operands.size() != 1)
    return Outcome::Misused("inspect takes one FILE");
  const std::string& path = invocation.operands[0];
  absl::StatusOr<Bytes> bytes = ReadFile(path);
  if (!bytes.ok())
    return Outcome::Failed(absl::StrCat(path, ": ", bytes.status().message()));
  Outcome outcome = Explain(*bytes);
  if (!outcome.error.empty())
    outcome.error = absl::StrCat(path, ": ", outcome.error);
  return outcome;
}

}  // namespace

Verb InspectVerb() {
  return {"inspect",
          "a frame or a basis in plain words, and whether it is whole", kHelp,
          false, RunInspect};
}

}  // namespace latentkv
