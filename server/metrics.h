// The daemon's numbers for Prometheus.
#ifndef LATENTKV_SERVER_METRICS_H_
#define LATENTKV_SERVER_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

#include "server/cache_service.h"
#include "storage/block_store.h"

namespace latentkv {

class DaemonMetrics final : public prometheus::Collectable {
 public:
  // Both outlive it.
  DaemonMetrics(const BlockStore* store, const CacheService* cache)
      : store_(store), cache_(cache) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const BlockStore* store_;
  const CacheService* cache_;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_METRICS_H_
