#include "server/metrics.h"

#include <utility>

namespace latentkv {
namespace {

prometheus::MetricFamily One(prometheus::MetricType type, const char* name,
                             const char* help, uint64_t value) {
  prometheus::ClientMetric metric;
  (type == prometheus::MetricType::Counter ? metric.counter.value
                                           : metric.gauge.value) =
      static_cast<double>(value);
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  family.metric.push_back(std::move(metric));
  return family;
}

}  // namespace

std::vector<prometheus::MetricFamily> DaemonMetrics::Collect() const {
  constexpr auto kCounter = prometheus::MetricType::Counter;
  constexpr auto kGauge = prometheus::MetricType::Gauge;
  const StoreStats stats = store_->Stats();
  return {
      One(kGauge, "latentkv_records", "Blocks stored.", stats.records),
      One(kGauge, "latentkv_stored_bytes", "Bytes of the frames stored.",
          stats.stored_bytes),
      One(kGauge, "latentkv_disk_bytes", "Bytes that the storage occupies.",
          stats.disk_bytes),
      One(kGauge, "latentkv_capacity_bytes", "Bytes that may be occupied.",
          stats.capacity_bytes),
      One(kGauge, "latentkv_memory_bytes", "Bytes in the memory tier.",
          stats.memory_bytes),
      One(kGauge, "latentkv_sessions", "Sessions kept.", cache_->sessions()),
      One(kCounter, "latentkv_hits_total", "Blocks found by lookups.",
          stats.hits),
      One(kCounter, "latentkv_misses_total", "Blocks not found by lookups.",
          stats.misses),
      One(kCounter, "latentkv_fetched_bytes_total", "Bytes of the frames read.",
          stats.fetched_bytes),
      One(kCounter, "latentkv_evicted_records_total", "Blocks evicted.",
          stats.evicted_records),
      One(kCounter, "latentkv_quarantined_records_total",
          "Blocks that did not verify.", stats.quarantined_records),
      One(kCounter, "latentkv_stores_total", "Frames acknowledged.",
          stats.stores),
      One(kCounter, "latentkv_stores_refused_total", "Frames refused.",
          stats.stores_refused),
  };
}

}  // namespace latentkv
