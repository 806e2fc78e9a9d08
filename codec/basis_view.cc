#include "codec/basis_view.h"

#include "codec/block_state.h"
#include "codec/group_codec.h"
#include "codec/latent_model.h"

namespace latentkv {

BasisView ViewOf(const Basis& basis, const LatentTables& tables) {
  BasisView view;
  view.geometry = &basis.geometry();
  view.tables = &tables;
  view.vocabulary = basis.embedding().vocabulary;
  view.dims = basis.embedding().dims;
  view.history = basis.embedding().history;
  view.embedding = basis.embedding().rows;
  view.inherited_rank = basis.inherited_rank();
  for (const BasisGroup& group : basis.groups()) {
    view.groups.push_back({group.first_layer, group.last_layer, group.channels,
                           group.rank, group.mean, group.feature_scale,
                           group.row_scale, group.decoder, group.feature_rows,
                           group.weight, group.sensitivity});
  }
  for (const KnownSinks& sinks : basis.sinks())
    view.known_sinks.push_back(sinks.values);
  view.known_sinks_of = [&basis](absl::Span<const uint32_t> tokens) {
    return FindKnownSinks(basis, tokens);
  };
  view.classes = [&basis](uint32_t group, float step) {
    std::vector<uint8_t> classes;
    for (float scale : basis.groups()[group].latent_scale) {
      classes.push_back(static_cast<uint8_t>(LatentClass(scale, step)));
    }
    return classes;
  };
  view.live_rank = [&basis](uint32_t group, float step) {
    return LiveRank(basis.groups()[group].latent_scale, step);
  };
  view.encoder = [&basis](uint32_t group) {
    return SolveEncoder(basis.groups()[group]);
  };
  return view;
}

}  // namespace latentkv
