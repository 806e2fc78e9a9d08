#include "codec/rotary_tables.h"

#include "core/limits.h"

namespace latentkv {
namespace {

bool RotateAlike(const LayerGeometry& a, const LayerGeometry& b) {
  return a.pairing == b.pairing && a.rotary_dim == b.rotary_dim &&
         a.rotary_scale == b.rotary_scale &&
         a.inverse_frequencies == b.inverse_frequencies;
}

}  // namespace

RotaryTables::RotaryTables(const Geometry& geometry) {
  for (const LayerGeometry& layer : geometry.layers) {
    uint32_t kind = 0;
    while (kind < kinds_.size() && !RotateAlike(kinds_[kind], layer)) ++kind;
    if (kind == kinds_.size()) kinds_.push_back(layer);
    kind_of_layer_.push_back(kind);
  }
}

std::shared_ptr<const RotaryTable> RotaryTables::Get(uint32_t layer,
                                                     uint32_t first_token) {
  const std::pair<uint32_t, uint32_t> id(kind_of_layer_[layer], first_token);
  {
    absl::MutexLock lock(&mutex_);
    if (const auto found = tables_.find(id); found != tables_.end())
      return found->second;
  }
  auto table = std::make_shared<const RotaryTable>(
      MakeRotaryTable(kinds_[id.first], first_token, kBlockTokens));
  absl::MutexLock lock(&mutex_);
  if (tables_.size() >= kTablesMax) tables_.clear();
  tables_[id] = table;
  return table;
}

}  // namespace latentkv
