"""What the connector tells vLLM's log and its Prometheus page about restores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.v1.metrics.utils import create_metric_per_engine

COUNTERS = {
    "restored_tokens": "Tokens whose KV came from latentkv.",
    "restored_bytes": "Bytes of the frames that they came from.",
    "restore_seconds": "Seconds from the start of a restore to its last page.",
    "restores": "Requests that restored something.",
    "failed_tokens": "Tokens that were found and could not be restored, and were recomputed.",
    "stored_tokens": "Tokens handed over to be stored.",
}


@dataclass
class RestoreStats(KVConnectorStats):
    """Sums since the last report, by the names of COUNTERS."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> RestoreStats:
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        return {f"latentkv_{name}": round(value, 4) for name, value in self.data.items()}

    def is_empty(self) -> bool:
        return not self.data


class RestoreMetrics(KVConnectorPromMetrics):
    """latentkv:<name>_total for each of COUNTERS."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = metric_types[Counter]
        self._counters = {
            name: create_metric_per_engine(
                counter(name=f"latentkv:{name}", documentation=text, labelnames=labelnames), per_engine_labelvalues
            )
            for name, text in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name][engine_idx].inc(value)
