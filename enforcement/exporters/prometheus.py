"""Export metrics to Prometheus. It needs the extra ``prometheus``, and reads the limiter at each scrape only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from enforcement.extras import Requirement

with Requirement("The exporter for Prometheus", "sluicegate[prometheus]"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector

from enforcement.base import BaseLimiter
from enforcement.exporters.metrics import METRICS, STORE_CALL, STORE_CALL_TEXT, Metric
from enforcement.exporters.text import prometheus_name
from enforcement.latency import Histogram
from enforcement.stats import Stats


class SluicegateCollector(Collector):
    """
    Collects the metrics of one limiter.

    Use it as ``REGISTRY.register(SluicegateCollector(limiter))``. Prometheus has to scrape each process, since a
    limiter counts for its process only. The control plane shows the numbers of the whole fleet. Two limiters in one
    process need two registries.

    Args:
        limiter: For threads or asyncio.
        time_store_calls: Also measure the duration of calls to the store. It costs each call about a microsecond.
    """

    def __init__(self, limiter: BaseLimiter, *, time_store_calls: bool = False) -> None:
        self._limiter = limiter
        if time_store_calls:
            limiter.time_store_calls()

    def collect(self) -> Iterator[Family]:
        """Yield all metrics with their current values."""
        stats = self._limiter.stats()
        info = GaugeMetricFamily("sluicegate_enforcer_info", "Always 1.", labels=["version"])
        info.add_metric([stats.version], 1)
        yield info
        yield from (_family(metric, stats) for metric in METRICS)
        if stats.store_calls is not None:
            yield _histogram(stats.store_calls)


def _family(metric: Metric, stats: Stats) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(prometheus_name(metric.name, metric.unit), metric.text, labels=metric.labels)
    for labels, value in metric.read(stats):
        family.add_metric([labels[name] for name in metric.labels], value)
    return family


def _histogram(calls: Histogram) -> Family:
    bounds = [*map(str, calls.bounds_seconds), "+Inf"]
    buckets = list(zip(bounds, accumulate(calls.counts), strict=True))
    family = HistogramMetricFamily(prometheus_name(STORE_CALL, "s"), STORE_CALL_TEXT)
    family.add_metric([], buckets, calls.total_seconds)
    return family


__all__ = ["SluicegateCollector"]
