"""Prometheus and OpenTelemetry get the same numbers under the same names."""

import re

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from enforcement import Limit, Limiter
from enforcement.engine.store_clock import StoreClock
from enforcement.exporters.metrics import METRICS
from enforcement.exporters.opentelemetry import annotate, instrument, span_attributes
from enforcement.exporters.prometheus import SluicegateCollector
from enforcement.exporters.text import exposition
from tests.enforcement.world import fixed
from tests.repository import ROOT

LIMIT = Limit(name="rate", quota=2, window_seconds=3_600)


def scrape(limiter, **options):
    """Return what a scrape reads: each sample's value by name and labels."""
    registry = CollectorRegistry()
    registry.register(SluicegateCollector(limiter, **options))
    for _ in range(3):
        limiter.hit(LIMIT, "k")
    text = generate_latest(registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def families():
    """Return all metrics of a collector."""
    return list(SluicegateCollector(Limiter("redis://127.0.0.1:1/0"), time_store_calls=True).collect())


def collect(limiter, **options):
    """Return what an SDK collects: each metric's data points by name."""
    reader = InMemoryMetricReader()
    instrument(limiter, meter_provider=MeterProvider([reader]), **options)
    for _ in range(3):
        limiter.hit(LIMIT, "k")
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def test_prometheus_reads_what_the_limiter_did(limiter, monkeypatch):
    """Two admitted, one denied; counters end in _total, spans in their unit."""
    # The difference of two clocks is never the same twice.
    monkeypatch.setattr(StoreClock, "offset_us", lambda clock: 1_500_000)
    samples = scrape(limiter)

    of = lambda allowed, reason: (  # noqa: E731
        "sluicegate_decisions_total",
        ("allowed", allowed),
        ("reason", reason),
        ("source", "store"),
    )
    assert samples[of("true", "ok")] == 2
    assert samples[of("false", "limited")] == 1
    assert samples["sluicegate_store_servers_away",] == 0
    assert samples["sluicegate_clock_offset_seconds",] == 1.5
    assert samples["sluicegate_state", ("state", "starting")] == 1
    assert not any(name.startswith("sluicegate_store_call_duration") for name, *_ in samples)


def test_prometheus_gets_a_histogram_on_demand(limiter):
    """Buckets add up, the last holds every call, and the sum is in seconds."""
    samples = scrape(limiter, time_store_calls=True)

    name = "sluicegate_store_call_duration_seconds"
    buckets = [value for (key, *labels), value in samples.items() if key == f"{name}_bucket"]
    assert buckets == sorted(buckets)
    assert samples[f"{name}_bucket", ("le", "+Inf")] == samples[f"{name}_count",] == 3
    assert 0 < samples[f"{name}_sum",] < 3


@pytest.mark.parametrize("timed", [False, True])
def test_a_server_without_the_exporter_writes_the_same(limiter, timed):
    """Prometheus' own parser reads the same names, labels and counts from both texts."""
    scraped = scrape(limiter, time_store_calls=timed)
    text = exposition(limiter.stats()).decode()

    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}

    assert set(found) == set(scraped)
    (denied,) = (name for name in found if ("reason", "limited") in name)
    assert scraped[denied] == found[denied] == 1


def test_labels_do_not_grow_with_traffic(limiter, world):
    """A hundred keys and a hundred invented tokens make not one series more than one of each."""

    def drive(number):
        for i in range(number):
            limiter.hit(LIMIT, f"user:{i}")
            limiter.check(f"sg_live_{i}")
        return set(scrape(limiter))

    drive(1)
    few = drive(1)

    assert drive(100) == few


def test_opentelemetry_reads_the_same_numbers(limiter):
    """Counters are sums that only grow, gauges are gauges, and each has its unit."""
    metrics = collect(limiter)

    points = {
        tuple(point.attributes.items()): point.value for point in metrics["sluicegate.decisions"].data.data_points
    }
    assert points == {
        (("sluicegate.source", "store"), ("sluicegate.reason", "limited"), ("sluicegate.allowed", "false")): 1,
        (("sluicegate.source", "store"), ("sluicegate.reason", "ok"), ("sluicegate.allowed", "true")): 2,
    }
    assert metrics["sluicegate.decisions"].data.is_monotonic
    assert metrics["sluicegate.decisions"].unit == "{request}"
    assert metrics["sluicegate.fleet.size"].data.data_points[0].value == 1


def test_every_metric_of_the_table_is_exported(limiter):
    """Only what has no value yet is left out: nothing failed or was refused, and the store confirmed no documents."""
    missing = {"sluicegate.store.failures", "sluicegate.documents.age", "sluicegate.refused.fields"}
    missing.add("sluicegate.bounds.broken")

    assert set(collect(limiter)) == {f"sluicegate.{metric.name}" for metric in METRICS} - missing


def test_every_metric_is_documented():
    """Whoever sets up an alert finds each name, and no name that is not there. The proxy has a table of its own."""
    page = (ROOT / "templates" / "docs" / "observing.md").read_text()
    table = page[page.index("| metric |") : page.index("| alert on")]
    documented = set(re.findall(r"`(sluicegate_(?!proxy_)[a-z_]+)`", table))

    named = {family.name + "_total" * (family.type == "counter") for family in families()}
    assert documented == named


def test_opentelemetry_gets_a_histogram_on_demand(limiter):
    """Each call to the store is one value of it, in seconds."""
    (point,) = collect(limiter, time_store_calls=True)["sluicegate.store.call.duration"].data.data_points

    assert point.count == 3
    assert 0 < point.sum < 3


def test_a_span_holds_the_decision(limiter):
    """Of a denial also which limit and how long to wait; nothing names the caller."""
    limiter.hit(LIMIT, "secret:7", costs=2)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        annotate(limiter.hit(LIMIT, "secret:7"))

    attributes = dict(span.attributes)
    assert 0 < attributes.pop("sluicegate.decision.retry_after_ms") <= 3_600_000
    assert attributes == {
        "sluicegate.decision.allowed": False,
        "sluicegate.decision.reason": "limited",
        "sluicegate.decision.source": "store",
        "sluicegate.decision.revision": 0,
        "sluicegate.limit.name": "rate",
        "sluicegate.limit.remaining": 0,
    }
    assert "secret" not in repr(span.attributes)


def test_a_published_limit_is_named_with_its_policy(limiter, world):
    """Two policies may both have an "rpm"."""
    decision = limiter.check(world.everything(fixed(5)))

    assert span_attributes(decision)["sluicegate.limit.name"] == "api/rpm"


def test_outside_of_a_span_nothing_is_worked_out(limiter):
    """Without an SDK, or without a sampled span, a decision stays as lazy as it is."""
    decision = limiter.hit(LIMIT, "k")
    annotate(decision)

    assert decision._states is None
