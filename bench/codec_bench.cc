// The codec over real keys and values, one thread, whole and by stage:
//   latentkv_codec_bench BASIS BLOCKS [--benchmark_...]
// BLOCKS is what bench/codec_blocks.py wrote: the number of tokens, the tokens,
// then each block's raw form.
#include <benchmark/benchmark.h>
#include <zstd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>

#include "codec/basis.h"
#include "codec/block_state.h"
#include "codec/codec.h"
#include "codec/group_codec.h"
#include "codec/latent_model.h"
#include "codec/latent_section.h"
#include "codec/rotary_tables.h"
#include "codec/scalar_codec.h"
#include "codec/sinks.h"
#include "core/limits.h"
#include "kernels/pages.h"

namespace latentkv {
namespace {

// One section as a decoder holds it.
struct Stage {
  const BasisGroup* group = nullptr;
  SectionShape shape;
  Bytes payload;
  LatentSection section;
  std::vector<int16_t> latents;  // [kBlockTokens][own and inherited]
};

// Everything that is measured on; made once, for all benchmarks.
struct Subject {
  std::shared_ptr<const Basis> basis;
  std::unique_ptr<Codec> codec, without_basis;
  std::vector<uint32_t> tokens;
  std::vector<Bytes> blocks;
  EncodeOptions balanced, uncalibrated;
  Bytes raw;  // Room for a block.

  BlockPlace Place(size_t block) const {
    const uint32_t first = block * kBlockTokens;
    return {Digest{}, first,
            absl::MakeConstSpan(tokens).first(first + kBlockTokens)};
  }
  size_t RawBytesOfAll() const { return blocks.size() * blocks[0].size(); }
};

bool Load(const char* basis_path, const char* blocks_path, Subject* subject) {
  auto basis = Basis::Load(basis_path);
  if (!basis.ok())
    return std::fprintf(stderr, "%s\n", basis.status().ToString().c_str()),
           false;
  subject->basis = *basis;
  const Geometry& geometry = subject->basis->geometry();
  subject->codec = *Codec::Create(geometry, subject->basis);
  subject->without_basis = *Codec::Create(geometry, nullptr);
  std::ifstream file(blocks_path, std::ios::binary);
  const Bytes bytes((std::istreambuf_iterator<char>(file)), {});
  ByteReader reader(bytes);
  const uint32_t count = reader.Get<uint32_t>();
  for (uint32_t t = 0; t < count && reader.ok(); ++t)
    subject->tokens.push_back(reader.Get<uint32_t>());
  while (reader.ok() && subject->blocks.size() < count / kBlockTokens) {
    const ByteSpan raw = reader.GetBytes(RawBytes(geometry, kBlockTokens));
    subject->blocks.emplace_back(raw.begin(), raw.end());
  }
  if (!reader.ok() || subject->blocks.empty()) {
    return std::fprintf(stderr,
                        "%s does not hold blocks of the basis's model\n",
                        blocks_path),
           false;
  }
  const absl::StatusOr<Profile> profile =
      subject->basis->FindProfile("balanced");
  if (!profile.ok())
    return std::fprintf(stderr, "%s\n", profile.status().ToString().c_str()),
           false;
  subject->balanced.exact = false;
  subject->balanced.step = profile->step;
  subject->uncalibrated.exact = false;
  subject->uncalibrated.step = kScalarStep;
  subject->raw.resize(RawBytes(geometry, kBlockTokens));
  return true;
}

void Count(const Subject& subject, benchmark::State* state) {
  const double tokens =
      subject.tokens.size() * static_cast<double>(state->iterations());
  state->counters["tokens/s"] =
      benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state->counters["us/token"] = benchmark::Counter(
      tokens / 1e6, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state->SetBytesProcessed(state->iterations() * subject.RawBytesOfAll());
}

std::vector<Bytes> Frames(const Subject& subject, const Codec& codec,
                          const EncodeOptions& options) {
  std::vector<Bytes> frames;
  for (size_t b = 0; b < subject.blocks.size(); ++b) {
    frames.push_back(
        *codec.Encode(subject.Place(b), subject.blocks[b], options));
  }
  return frames;
}

void Encode(benchmark::State& state, const Subject& subject, const Codec& codec,
            const EncodeOptions& options) {
  std::vector<Bytes> frames;
  for (auto _ : state) frames = Frames(subject, codec, options);
  size_t bytes = 0;
  for (const Bytes& frame : frames) bytes += frame.size();
  state.counters["ratio"] =
      static_cast<double>(subject.RawBytesOfAll()) / bytes;
  Count(subject, &state);
}

void Decode(benchmark::State& state, Subject& subject, const Codec& codec,
            const EncodeOptions& options) {
  const std::vector<Bytes> frames = Frames(subject, codec, options);
  for (auto _ : state) {
    for (size_t b = 0; b < frames.size(); ++b) {
      const FrameHeader header = *ParseFrameHeader(frames[b], frames[b].size());
      const auto reader = *codec.Open(header, subject.Place(b));
      for (size_t s = 0; s < header.sections.size(); ++s) {
        const ByteSpan payload = ByteSpan(frames[b]).subspan(
            header.sections[s].offset, header.sections[s].bytes);
        const auto [first, last] = codec.SectionLayers(header.encoding, s);
        const uint64_t bytes =
            RawBytes(codec.geometry(), first, last, kBlockTokens);
        if (!reader->ReadSection(s, payload, {subject.raw.data(), bytes}).ok())
          state.SkipWithError("not decoded");
      }
    }
  }
  Count(subject, &state);
}

std::vector<std::vector<Stage>> Stages(const Subject& subject,
                                       const LatentTables& tables) {
  std::vector<std::vector<Stage>> stages;
  const std::vector<Bytes> frames =
      Frames(subject, *subject.codec, subject.balanced);
  for (size_t b = 0; b < frames.size(); ++b) {
    const FrameHeader header = *ParseFrameHeader(frames[b], frames[b].size());
    BlockState state(*subject.basis, b * kBlockTokens, subject.Place(b).tokens);
    stages.emplace_back();
    for (size_t s = 0; s < header.sections.size(); ++s) {
      Stage stage;
      stage.group = &subject.basis->groups()[s];
      const uint32_t first = stage.group->first_layer,
                     last = stage.group->last_layer;
      for (uint32_t l = first; l < last; ++l) {
        const LayerGeometry& layer = subject.basis->geometry().layers[l];
        stage.shape.exact_token_bytes +=
            size_t{layer.Channels()} * DTypeBytes(layer.dtype);
      }
      stage.shape.sink_bytes =
          b == 0 ? SinkBytes(subject.basis->geometry(), first, last) : 0;
      stage.payload.assign(frames[b].begin() + header.sections[s].offset,
                           frames[b].begin() + header.sections[s].offset +
                               header.sections[s].bytes);
      stage.section =
          *ReadLatentSection(*stage.group, tables, subject.balanced.step,
                             stage.shape, stage.payload);
      for (uint32_t t = 0; t < kBlockTokens; ++t) {
        const absl::Span<const int16_t> inherited = state.inherited(t);
        const auto own =
            stage.section.latents.begin() + size_t{t} * stage.group->rank;
        stage.latents.insert(stage.latents.end(), own, own + stage.group->rank);
        stage.latents.insert(stage.latents.end(), inherited.begin(),
                             inherited.end());
      }
      state.AddGroup(stage.section.latents, stage.group->rank,
                     stage.group->rank);
      stages.back().push_back(std::move(stage));
    }
  }
  return stages;
}

void EntropyDecode(benchmark::State& state, const Subject& subject) {
  const LatentTables tables = MakeLatentTables();
  const auto stages = Stages(subject, tables);
  for (auto _ : state) {
    for (const auto& block : stages) {
      for (const Stage& stage : block) {
        benchmark::DoNotOptimize(ReadLatentSection(*stage.group, tables,
                                                   subject.balanced.step,
                                                   stage.shape, stage.payload));
      }
    }
  }
  Count(subject, &state);
}

void EntropyEncode(benchmark::State& state, const Subject& subject) {
  const LatentTables tables = MakeLatentTables();
  const auto stages = Stages(subject, tables);
  for (auto _ : state) {
    for (const auto& block : stages) {
      for (const Stage& stage : block) {
        benchmark::DoNotOptimize(WriteLatentSection(
            *stage.group, tables, subject.balanced.step, stage.section));
      }
    }
  }
  Count(subject, &state);
}

// What entropy decoding feeds: the products of features and latents.
void Products(benchmark::State& state, const Subject& subject) {
  const auto stages = Stages(subject, MakeLatentTables());
  struct Decoders {
    PackedDecoder features, latents;
  };
  std::vector<Decoders> decoders;
  const uint32_t feature_count = subject.basis->embedding().Features();
  for (const BasisGroup& group : subject.basis->groups()) {
    decoders.push_back(
        {PackDecoder(group.feature_rows, feature_count, group.channels),
         PackDecoder(group.decoder, group.decoder.size() / group.channels,
                     group.channels)});
  }
  for (auto _ : state) {
    for (size_t b = 0; b < stages.size(); ++b) {
      const BlockState block(*subject.basis, b * kBlockTokens,
                             subject.Place(b).tokens);
      const absl::Span<const int16_t> features = block.features();
      for (size_t g = 0; g < decoders.size(); ++g) {
        const BasisGroup& group = *stages[b][g].group;
        std::vector<float> values(size_t{kBlockTokens} * group.channels);
        if (feature_count > 0) {
          Restore(decoders[g].features, features, feature_count, kBlockTokens,
                  group.feature_scale, 1, group.mean, absl::MakeSpan(values));
        }
        Restore(decoders[g].latents, stages[b][g].latents,
                decoders[g].latents.rank, kBlockTokens, group.row_scale,
                subject.balanced.step, values, absl::MakeSpan(values));
        benchmark::DoNotOptimize(values.data());
      }
    }
  }
  Count(subject, &state);
}

// The engine's types to floats with keys un-rotated: the first stage of
// encoding.
void Channels(benchmark::State& state, const Subject& subject) {
  const LatentTables tables = MakeLatentTables();
  RotaryTables rotary(subject.basis->geometry());
  std::vector<std::unique_ptr<GroupCodec>> groups;
  for (uint32_t g = 0; g < subject.basis->groups().size(); ++g) {
    groups.push_back(
        std::make_unique<GroupCodec>(*subject.basis, g, tables, &rotary));
  }
  for (auto _ : state) {
    for (size_t b = 0; b < subject.blocks.size(); ++b) {
      size_t offset = 0;
      for (const auto& group : groups) {
        const ByteSpan raw =
            ByteSpan(subject.blocks[b]).subspan(offset, group->raw_bytes());
        benchmark::DoNotOptimize(group->Channels(b * kBlockTokens, raw));
        offset += group->raw_bytes();
      }
    }
  }
  Count(subject, &state);
}

// The same raw blocks through zstd, one at a time.
void EncodeZstd(benchmark::State& state, const Subject& subject, int level) {
  Bytes frame(ZSTD_compressBound(subject.blocks[0].size()));
  size_t bytes = 0;
  for (auto _ : state) {
    bytes = 0;
    for (const Bytes& raw : subject.blocks) {
      bytes += ZSTD_compress(frame.data(), frame.size(), raw.data(), raw.size(),
                             level);
    }
  }
  state.counters["ratio"] =
      static_cast<double>(subject.RawBytesOfAll()) / bytes;
  Count(subject, &state);
}

void DecodeZstd(benchmark::State& state, const Subject& subject, int level) {
  std::vector<Bytes> frames;
  for (const Bytes& raw : subject.blocks) {
    frames.emplace_back(ZSTD_compressBound(raw.size()));
    frames.back().resize(ZSTD_compress(frames.back().data(),
                                       frames.back().size(), raw.data(),
                                       raw.size(), level));
  }
  Bytes raw(subject.blocks[0].size());
  for (auto _ : state) {
    for (const Bytes& frame : frames)
      ZSTD_decompress(raw.data(), raw.size(), frame.data(), frame.size());
    benchmark::DoNotOptimize(raw.data());
  }
  Count(subject, &state);
}

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  using latentkv::Subject;
  benchmark::Initialize(&argc, argv);
  Subject subject;
  if (argc != 3)
    return std::fprintf(stderr, "usage: %s BASIS BLOCKS\n", argv[0]), 2;
  if (!latentkv::Load(argv[1], argv[2], &subject)) return 1;
  const latentkv::EncodeOptions exact;
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->Unit(benchmark::kMillisecond);
  };
  const auto add_both = [&](const std::string& name,
                            const latentkv::Codec& codec,
                            const latentkv::EncodeOptions& how) {
    add("encode/" + name, [&](benchmark::State& state) {
      latentkv::Encode(state, subject, codec, how);
    });
    add("decode/" + name, [&](benchmark::State& state) {
      latentkv::Decode(state, subject, codec, how);
    });
  };
  add_both("exact", *subject.codec, exact);
  for (const int level : {3, 19}) {
    const std::string name = "zstd -" + std::to_string(level);
    add("encode/" + name, [&, level](benchmark::State& state) {
      latentkv::EncodeZstd(state, subject, level);
    });
    add("decode/" + name, [&, level](benchmark::State& state) {
      latentkv::DecodeZstd(state, subject, level);
    });
  }
  add_both("uncalibrated", *subject.without_basis, subject.uncalibrated);
  add_both("balanced", *subject.codec, subject.balanced);
  add("encode/channels",
      [&](benchmark::State& state) { latentkv::Channels(state, subject); });
  add("encode/entropy", [&](benchmark::State& state) {
    latentkv::EntropyEncode(state, subject);
  });
  add("decode/entropy", [&](benchmark::State& state) {
    latentkv::EntropyDecode(state, subject);
  });
  add("decode/products",
      [&](benchmark::State& state) { latentkv::Products(state, subject); });
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
