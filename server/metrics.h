// The store's numbers for Prometheus.
#ifndef LATENTKV_SERVER_METRICS_H_
#define LATENTKV_SERVER_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

#include "storage/block_store.h"

namespace latentkv {

class StoreMetrics final : public prometheus::Collectable {
 public:
  explicit StoreMetrics(const BlockStore* store) : store_(store) {}  // Which outlives it.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const BlockStore* store_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_METRICS_H_
