#include "tests/fuzz/entries.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "codec/exact_section.h"
#include "codec/latent_model.h"
#include "codec/sinks.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "core/limits.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

void Require(bool kept, const char* promise) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

bool IsDamage(const absl::Status& status) {
  return status.code() == absl::StatusCode::kDataLoss ||
         status.code() == absl::StatusCode::kUnimplemented;
}

void PutU32(uint32_t value, size_t offset, Bytes* bytes) {
  std::memcpy(bytes->data() + offset, &value, sizeof(value));
}

// The checksum in the last four of `checked` bytes.
void Seal(size_t checked, Bytes* bytes) {
  PutU32(Crc32c(ByteSpan(*bytes).first(checked - 4)), checked - 4, bytes);
}

// Blocks without a basis, at first token 0 and 64.
struct ScalarBlocks {
  std::unique_ptr<Codec> codec;
  Bytes frames[2];

  ScalarBlocks(const Geometry& geometry, const std::vector<uint32_t>& tokens,
               const Bytes& first, const Bytes& next)
      : codec(*Codec::Create(geometry, nullptr)) {
    EncodeOptions options;
    options.exact = false;
    options.step = 0.5f;
    frames[0] = *codec->Encode(PlaceOf(tokens, 0), first, options);
    frames[1] = *codec->Encode(PlaceOf(tokens, 64), next, options);
  }
};

// Blocks of the synthetic model, and what belongs to them; made once.
struct Blocks {
  static constexpr float kSteps[] = {0.75f, 0.25f, 4, 64};
  SyntheticModel model;
  std::vector<uint32_t> tokens = model.Tokens(2 * kBlockTokens, 77);
  std::vector<Bytes> frames;  // [2][4]: at first token 0 and 64, at each step.
  ScalarBlocks scalar{model.geometry(), tokens, model.Block(tokens, 0),
                      model.Block(tokens, 64)};
  ScalarBlocks value_dims{ValueDimGeometry(), tokens,
                          DrawBlock(ValueDimGeometry(), 1),
                          DrawBlock(ValueDimGeometry(), 2)};
  const LatentTables tables = MakeLatentTables();

  Blocks() {
    for (const uint32_t first_token : {0, 64}) {
      for (const float step : kSteps) {
        EncodeOptions options;
        options.exact = false;
        options.step = step;
        const Bytes raw = model.Block(tokens, first_token);
        frames.push_back(
            *model.codec().Encode(PlaceOf(tokens, first_token), raw, options));
      }
    }
  }
};

Blocks& SharedBlocks() {
  static Blocks blocks;
  return blocks;
}

// Of these three a choice is made.
uint32_t GroupOf(uint8_t choice) { return choice & 1; }
uint32_t FirstTokenOf(uint8_t choice) { return choice & 2 ? 64 : 0; }
float StepOf(uint8_t choice) { return Blocks::kSteps[choice >> 2 & 3]; }

// In the first byte of sections without a basis: values have other dimensions
// than keys.
constexpr uint8_t kValueDims = 0x80;

// Reads `payload` as a section, behind a right checksum.
void ReadForged(uint8_t choice, const Bytes& payload) {
  Blocks& blocks = SharedBlocks();
  const uint32_t group = GroupOf(choice), first_token = FirstTokenOf(choice);
  const Bytes& frame =
      blocks.frames[(first_token / 64) * 4 + (choice >> 2 & 3)];
  FrameHeader header = *VerifyFrame(frame);
  header.sections[group] = {0, payload.size(), Crc32c(payload)};
  const auto reader =
      *blocks.model.codec().Open(header, PlaceOf(blocks.tokens, first_token));
  BlockPages pages(blocks.model.geometry());
  if (group == 1) {
    Require(ReadInto(blocks.model.codec(), header.encoding, 0,
                     SectionsOf(frame)[0], reader.get(), &pages)
                .ok(),
            "a sound section is read");
  }
  const absl::Status status = ReadInto(blocks.model.codec(), header.encoding,
                                       group, payload, reader.get(), &pages);
  Require(status.ok() || status.code() == absl::StatusCode::kDataLoss,
          "a section is read or damaged");
  Require(status.ok() || pages.Untouched(2 * group, 4),
          "a damaged section touches no page");
}

// A codec in `basis` encodes a plain block and restores it, or says why it
// cannot.
void UseBasis(const std::shared_ptr<const Basis>& basis) {
  const auto codec = Codec::Create(basis->geometry(), basis);
  Require(codec.ok(), "a basis serves its own geometry");
  const std::vector<uint32_t> tokens(2 * kBlockTokens, 1);
  const Bytes raw(RawBytes(basis->geometry(), kBlockTokens), 0x3c);
  for (const uint32_t first_token : {0, 64}) {
    EncodeOptions options;
    options.exact = false;
    options.step = 0.5f;
    const auto frame =
        (*codec)->Encode(PlaceOf(tokens, first_token), raw, options);
    if (!frame.ok()) {
      Require(frame.status().code() == absl::StatusCode::kFailedPrecondition,
              "a block is encoded, or has no encoder");
      return;
    }
    BlockPages pages(basis->geometry());
    Require(Restore(**codec, *frame, PlaceOf(tokens, first_token), &pages).ok(),
            "what was encoded is restored");
  }
}

}  // namespace

void FuzzFrame(ByteSpan input) {
  const absl::StatusOr<FrameHeader> plain = VerifyFrame(input);
  Require(plain.ok() || IsDamage(plain.status()),
          "a frame verifies or is damaged");
  Bytes frame(input.begin(), input.end());
  uint32_t header_bytes = 0;
  if (frame.size() < 12) return;
  std::memcpy(&header_bytes, frame.data() + 8, sizeof(header_bytes));
  if (header_bytes < 4 || header_bytes > frame.size()) return;
  Seal(header_bytes, &frame);
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(frame, frame.size());
  Require(header.ok() || IsDamage(header.status()),
          "a header is sound or damaged");
  if (!header.ok()) return;
  std::vector<Bytes> sections;
  uint64_t end = header_bytes;
  for (size_t s = 0; s < header->sections.size(); ++s) {
    const FrameSection& section = header->sections[s];
    Require(section.offset == end && section.bytes <= frame.size() - end,
            "sections tile the frame");
    end += section.bytes;
    sections.emplace_back(frame.begin() + section.offset, frame.begin() + end);
    // Behind its length.
    PutU32(Crc32c(sections.back()), FrameHeaderBytes(s), &frame);
  }
  Require(end == frame.size(), "sections tile the frame");
  Seal(header_bytes, &frame);
  header = VerifyFrame(frame);
  Require(header.ok(), "checksums are all that was wrong");
  Require(*WriteFrame(*header, sections) == frame,
          "what is read is what is written");
}

void FuzzLatentSection(ByteSpan input) {
  if (input.empty()) return;
  // A copy of the exact size on the heap: the address sanitizer sees a read
  // beyond.
  ReadForged(input[0], Bytes(input.begin() + 1, input.end()));
}

void FuzzLatents(ByteSpan input) {
  ByteReader reader(input);
  const uint8_t choice = reader.Get<uint8_t>(), flags = reader.Get<uint8_t>();
  const BasisGroup& group =
      SharedBlocks().model.basis()->groups()[GroupOf(choice)];
  LatentSection section;
  section.predicted = (flags & 1) != 0;
  section.sink_source = static_cast<SinkSource>((flags >> 1 & 3) % 3);
  const ByteSpan exact = reader.GetBytes(flags >> 3);
  section.exact_tokens.assign(exact.begin(), exact.end());
  section.exact_values.resize(exact.size() * group.channels * sizeof(uint16_t));
  if (section.sink_source == SinkSource::kStored) {
    section.sinks.resize(SinkBytes(SharedBlocks().model.geometry(),
                                   group.first_layer, group.last_layer));
  }
  section.latents.resize(size_t{kBlockTokens} * group.rank);
  while (reader.ok() && reader.remaining() >= 4) {
    const uint16_t place = reader.Get<uint16_t>();
    section.latents[place % section.latents.size()] = reader.Get<int16_t>();
  }
  ReadForged(choice, *WriteLatentSection(group, SharedBlocks().tables,
                                         StepOf(choice), section));
}

void FuzzExactSection(ByteSpan input) {
  if (input.empty()) return;
  constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32,
                               DType::kFp8E4M3};
  LayerGeometry layer;
  layer.kv_heads = 1 + (input[0] >> 2 & 1);
  layer.head_dim = input[0] & 8 ? 5 : 16;  // Of 5 no tile is whole.
  if (input[0] & kValueDims) layer.value_dim = input[0] & 8 ? 11 : 4;
  layer.dtype = kDTypes[input[0] & 3];
  const Bytes payload(input.begin() + 1, input.end());
  Bytes raw(size_t{layer.Channels()} * DTypeBytes(layer.dtype) * kBlockTokens);
  const absl::Status status =
      ReadExactSection(layer, payload, absl::MakeSpan(raw));
  Require(status.ok() || status.code() == absl::StatusCode::kDataLoss,
          "a section is read or damaged");
  if (!status.ok()) return;
  Bytes again(raw.size());
  const Bytes written = *WriteExactSection(layer, raw);
  Require(written.size() <= raw.size() + 1,
          "a section grows by a byte at most");
  Require(ReadExactSection(layer, written, absl::MakeSpan(again)).ok() &&
              again == raw,
          "exact is exact");
}

void FuzzScalarSection(ByteSpan input) {
  if (input.empty()) return;
  Blocks& blocks = SharedBlocks();
  const ScalarBlocks& of =
      input[0] & kValueDims ? blocks.value_dims : blocks.scalar;
  // As a client reads them: with a basis if it has one.
  const Codec& codec = input[0] & kValueDims ? *of.codec : blocks.model.codec();
  const uint32_t layers = codec.geometry().layers.size();
  const uint32_t layer = input[0] & (layers - 1),  // Of 4, or of 2.
      first_token = input[0] & 4 ? 64 : 0;
  const Bytes& frame = of.frames[first_token / 64];
  const Bytes payload(input.begin() + 1, input.end());
  FrameHeader header = *VerifyFrame(frame);
  header.sections[layer] = {0, payload.size(), Crc32c(payload)};
  const auto reader = *codec.Open(header, PlaceOf(blocks.tokens, first_token));
  BlockPages pages(codec.geometry());
  for (uint32_t l = 0; l < layer; ++l) {
    const Bytes sound = SectionsOf(frame)[l];
    Require(
        ReadInto(codec, header.encoding, l, sound, reader.get(), &pages).ok(),
        "a sound section is read");
  }
  const absl::Status status =
      ReadInto(codec, header.encoding, layer, payload, reader.get(), &pages);
  Require(status.ok() || status.code() == absl::StatusCode::kDataLoss,
          "a section is read or damaged");
  Require(status.ok() || pages.Untouched(layer, layers),
          "a damaged section touches no page");
}

void FuzzBasis(ByteSpan input) {
  const auto plain = Basis::Parse(input);
  Require(plain.ok() || IsDamage(plain.status()),
          "a basis is sound or damaged");
  Bytes bytes(input.begin(), input.end());
  if (bytes.size() < 4) return;
  Seal(bytes.size(), &bytes);
  const auto basis = Basis::Parse(bytes);
  Require(basis.ok() || IsDamage(basis.status()),
          "a basis is sound or damaged");
  if (!basis.ok()) return;
  Require((*basis)->serialized() == bytes, "what is read is what is written");
  UseBasis(*basis);
}

}  // namespace latentkv
