#include <fstream>
#include <iterator>
#include <string>

#include "codec/exact_section.h"
#include "tests/codec/synthetic.h"
#include "tests/fuzz/entries.h"

namespace latentkv {
namespace {

Bytes File(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes((std::istreambuf_iterator<char>(file)), {});
}

Bytes Golden(const std::string& name) { return File(GOLDEN_PATH "/" + name); }

std::vector<Bytes> Corpus(const std::string& name) {
  const Bytes packed = File(CORPUS_PATH "/" + name);
  std::vector<Bytes> inputs;
  ByteReader reader(packed);
  while (reader.ok() && reader.remaining() > 0) {
    const ByteSpan input = reader.GetBytes(reader.Get<uint32_t>());
    inputs.emplace_back(input.begin(), input.end());
  }
  return reader.ok() ? inputs : std::vector<Bytes>();
}

// The golden basis with 2 layers of 1 head of 2 dimensions, and of values
// `value_dim` if it is not 0: few enough bytes for chance to meet each.
Bytes SmallBasis(uint32_t value_dim) {
  BasisParts parts = SyntheticParts();
  parts.geometry.layers.resize(2);
  for (LayerGeometry& layer : parts.geometry.layers) {
    layer.kv_heads = 1;
    layer.head_dim = layer.rotary_dim = 2;
    layer.value_dim = value_dim;
    layer.inverse_frequencies.resize(1);
  }
  parts.profiles.resize(1);
  parts.embedding = {3, 2, 2, {1, 2, 3, 4, 5, 6}};
  parts.inherited_rank = 1;
  const uint32_t channels = parts.geometry.layers[0].Channels();
  parts.sinks[0].values.assign(2 * 4 * (2 * 4 + channels), 1);
  for (uint32_t g = 0; g < 2; ++g) {
    BasisGroup& group = parts.groups[g];
    group.first_layer = g;
    group.last_layer = g + 1;
    group.channels = channels;
    group.rank = 2;
    for (auto* values : {&group.mean, &group.feature_scale, &group.row_scale,
                         &group.weight, &group.sensitivity}) {
      values->resize(channels);
    }
    group.latent_scale.resize(2);
    group.decoder.resize((2 + g) * channels);
    group.feature_rows.resize(4 * channels);
  }
  return (*Basis::Create(parts))->serialized();
}

Bytes ExactSection(uint32_t head_dim, uint32_t value_dim) {
  LayerGeometry layer;
  layer.kv_heads = 1;
  layer.head_dim = head_dim;
  layer.value_dim = value_dim;
  return *WriteExactSection(layer, DrawBlock({{layer}}));
}

Bytes Chosen(uint8_t choice, const Bytes& payload) {
  Bytes seed = payload;
  seed.insert(seed.begin(), choice);
  return seed;
}

}  // namespace

const std::vector<FuzzEntry>& FuzzEntries() {
  static const std::vector<FuzzEntry> entries = [] {
    const Bytes exact = Golden("synthetic-exact.frame"),
                first = Golden("synthetic-first.frame");
    const Bytes next = Golden("synthetic-next.frame");
    const std::vector<Bytes> frames = {Golden("envelope.frame"), exact, first,
                                       next, Golden("value-dims.frame")};
    const std::vector<Bytes> latents = {{2, 9, 40, 7, 0, 3, 0},
                                        {1, 17, 9, 60, 200, 1, 44, 1}};
    const std::vector<Bytes> bases = {Golden("synthetic.basis"), SmallBasis(0),
                                      SmallBasis(4)};
    std::vector<FuzzEntry> made = {
        {"frame", FuzzFrame, frames, {}},
        {"latent_section", FuzzLatentSection, {}, {}},
        {"latents", FuzzLatents, latents, {}},
        {"exact_section", FuzzExactSection, {}, {}},
        {"scalar_section", FuzzScalarSection, {}, {}},
        {"basis", FuzzBasis, bases, {}}};
    for (FuzzEntry& entry : made) entry.corpus = Corpus(entry.name);
    // At step 0.75, as the golden frames are.
    for (uint8_t group : {0, 1}) {
      made[1].seeds.push_back(Chosen(group, SectionsOf(first)[group]));
      made[1].seeds.push_back(Chosen(group | 2, SectionsOf(next)[group]));
    }
    // Of two heads, in bf16; and as plain bytes.
    made[3].seeds.push_back(Chosen(4, SectionsOf(exact)[0]));
    made[3].seeds.push_back(Chosen(3, Bytes(1 + 2 * 16 * 64)));
    const std::vector<Bytes> scalar =
        SectionsOf(Golden("synthetic-scalar.frame"));
    for (uint8_t layer = 0; layer < scalar.size(); ++layer)
      made[4].seeds.push_back(Chosen(layer, scalar[layer]));
    // Where values have other dimensions than keys, in bf16.
    made[3].seeds.push_back(Chosen(0x88, ExactSection(5, 11)));
    made[3].seeds.push_back(Chosen(0x80, ExactSection(16, 4)));
    const std::vector<Bytes> wide = SectionsOf(Golden("value-dims.frame"));
    for (uint8_t layer = 0; layer < wide.size(); ++layer)
      made[4].seeds.push_back(Chosen(0x80 | layer, wide[layer]));
    return made;
  }();
  return entries;
}

Bytes PackCorpus(const std::vector<Bytes>& inputs) {
  Bytes packed;
  ByteWriter writer(&packed);
  for (const Bytes& input : inputs) {
    writer.Put<uint32_t>(input.size());
    writer.PutBytes(input);
  }
  return packed;
}

}  // namespace latentkv
