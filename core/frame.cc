#include "core/frame.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/checksum.h"
#include "core/limits.h"

namespace latentkv {
namespace {

constexpr uint32_t kFixedBytes = 132;   // Everything before the section table.
constexpr uint32_t kEntryBytes = 8;     // Length and checksum of a section.
constexpr uint32_t kChecksumBytes = 4;  // Of the header, behind the table.
static_assert(kFrameBytesMax < (uint64_t{1} << 32));  // Lengths are u32.

// What a reader and a writer both insist on.
std::string Fault(const FrameHeader& header) {
  if (header.token_count != kBlockTokens)
    return absl::StrCat("token_count ", header.token_count);
  if (header.first_token % kBlockTokens != 0 ||
      header.first_token / kBlockTokens >= kChainBlocksMax) {
    return absl::StrCat("first_token ", header.first_token);
  }
  const bool finite =
      std::isfinite(header.loss_own) && std::isfinite(header.loss_chain);
  if (!finite || header.loss_own < 0 || header.loss_chain < header.loss_own) {
    return absl::StrCat("losses ", header.loss_own, " and ", header.loss_chain);
  }
  return "";
}

}  // namespace

uint64_t FrameHeaderBytes(uint32_t section_count) {
  return kFixedBytes + uint64_t{kEntryBytes} * section_count + kChecksumBytes;
}

namespace {

// The header of a frame whose sections are `sections`.
absl::StatusOr<Bytes> WriteHeader(const FrameHeader& header,
                                  absl::Span<const ByteSpan> sections) {
  if (sections.empty() || sections.size() > kGroupsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a frame has 1 to ", kGroupsMax, " sections, not ", sections.size()));
  }
  if (const std::string fault = Fault(header); !fault.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame cannot have ", fault));
  }
  const uint64_t header_bytes = FrameHeaderBytes(sections.size());
  uint64_t frame_bytes = header_bytes;
  for (const ByteSpan section : sections) frame_bytes += section.size();
  if (frame_bytes > kFrameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a frame of ", frame_bytes, " bytes, more than ", kFrameBytesMax));
  }
  Bytes bytes;
  bytes.reserve(header_bytes);
  ByteWriter writer(&bytes);
  writer.Put(kFrameMagic);
  writer.Put(kFrameVersion);
  writer.Put<uint16_t>(0);
  writer.Put<uint32_t>(header_bytes);
  writer.Put<uint32_t>(sections.size());
  writer.PutBytes(header.key.span());
  writer.PutBytes(header.geometry.span());
  writer.PutBytes(AsBytes(header.encoding.ToBytes()));
  writer.Put(header.first_token);
  writer.Put(header.token_count);
  writer.Put(header.loss_own);
  writer.Put(header.loss_chain);
  for (const ByteSpan section : sections) {
    writer.Put<uint32_t>(section.size());
    writer.Put(Crc32c(section));
  }
  writer.Put(Crc32c(bytes));
  return bytes;
}

}  // namespace

absl::StatusOr<Bytes> WriteFrame(FrameHeader header,
                                 const std::vector<Bytes>& sections) {
  absl::StatusOr<Bytes> frame = WriteHeader(
      header, std::vector<ByteSpan>(sections.begin(), sections.end()));
  if (!frame.ok()) return frame;
  size_t bytes = frame->size();
  for (const Bytes& section : sections) bytes += section.size();
  frame->reserve(bytes);
  for (const Bytes& section : sections)
    frame->insert(frame->end(), section.begin(), section.end());
  return frame;
}

absl::StatusOr<uint64_t> SealFrame(const FrameHeader& header,
                                   absl::Span<const uint64_t> section_bytes,
                                   uint8_t* frame) {
  std::vector<ByteSpan> sections;
  uint64_t at = FrameHeaderBytes(section_bytes.size());
  for (uint64_t bytes : section_bytes) {
    sections.emplace_back(frame + at, bytes);
    at += bytes;
  }
  const absl::StatusOr<Bytes> written = WriteHeader(header, sections);
  if (!written.ok()) return written.status();
  std::copy(written->begin(), written->end(), frame);
  return at;
}

absl::StatusOr<FrameHeader> ParseFrameHeader(ByteSpan frame,
                                             uint64_t frame_bytes) {
  ByteReader reader(frame);
  if (reader.Get<uint32_t>() != kFrameMagic)
    return absl::DataLossError("not a frame");
  if (const uint16_t version = reader.Get<uint16_t>();
      reader.ok() && version != kFrameVersion) {
    return absl::UnimplementedError(absl::StrCat(
        "a frame of version ", version, "; this reader knows ", kFrameVersion));
  }
  const uint16_t reserved = reader.Get<uint16_t>();
  const uint32_t header_bytes = reader.Get<uint32_t>();
  const uint32_t section_count = reader.Get<uint32_t>();
  if (!reader.ok() || section_count == 0 || section_count > kGroupsMax ||
      header_bytes != FrameHeaderBytes(section_count) ||
      header_bytes > frame.size() || frame_bytes > kFrameBytesMax) {
    return absl::DataLossError("a frame's header has the wrong length");
  }
  uint32_t checksum;
  std::memcpy(&checksum, frame.data() + header_bytes - kChecksumBytes,
              sizeof(checksum));
  if (Crc32c(frame.first(header_bytes - kChecksumBytes)) != checksum) {
    return absl::DataLossError("a frame's header does not match its checksum");
  }
  FrameHeader header;
  header.key = *DigestFromBytes(reader.GetBytes(sizeof(Digest)));
  header.geometry = *DigestFromBytes(reader.GetBytes(sizeof(Digest)));
  absl::StatusOr<Encoding> encoding =
      EncodingFromBytes(reader.GetBytes(kEncodingBytes));
  if (!encoding.ok()) return absl::DataLossError(encoding.status().message());
  header.encoding = *encoding;
  header.first_token = reader.Get<uint32_t>();
  header.token_count = reader.Get<uint32_t>();
  header.loss_own = reader.Get<float>();
  header.loss_chain = reader.Get<float>();
  if (const std::string fault = Fault(header);
      reserved != 0 || !fault.empty()) {
    return absl::DataLossError(
        absl::StrCat("a frame with ", fault.empty() ? "unknown flags" : fault));
  }
  uint64_t offset = header_bytes;
  for (uint32_t s = 0; s < section_count; ++s) {
    FrameSection& section = header.sections.emplace_back();
    section.offset = offset;
    section.bytes = reader.Get<uint32_t>();
    section.crc32c = reader.Get<uint32_t>();
    offset += section.bytes;
  }
  if (offset != frame_bytes) {
    return absl::DataLossError(absl::StrCat(
        "a frame's sections end at ", offset, " of ", frame_bytes, " bytes"));
  }
  return header;
}

absl::StatusOr<FrameHeader> VerifyFrame(ByteSpan frame) {
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(frame, frame.size());
  if (!header.ok()) return header.status();
  for (size_t s = 0; s < header->sections.size(); ++s) {
    const FrameSection& section = header->sections[s];
    if (Crc32c(frame.subspan(section.offset, section.bytes)) !=
        section.crc32c) {
      return absl::DataLossError(absl::StrCat(
          "section ", s, " of a frame does not match its checksum"));
    }
  }
  return header;
}

}  // namespace latentkv
