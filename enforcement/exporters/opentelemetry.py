"""
For OpenTelemetry, with the extra ``opentelemetry``: instruments that read a limiter, and attributes for spans.

Only the API is needed. Where no SDK is set up, all of this does nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
from opentelemetry.trace import Span, get_current_span

from enforcement.base import BaseLimiter
from enforcement.exporters.metrics import METRICS, STORE_CALL, STORE_CALL_TEXT, Metric
from enforcement.latency import BOUNDS_SECONDS
from enforcement.plan.decision import Decision

Attribute = str | bool | int

# Where a label has a name in the semantic conventions, that is used.
_CONVENTIONAL: Final = {"cause": "error.type"}


def instrument(
    limiter: BaseLimiter, *, meter_provider: MeterProvider | None = None, time_store_calls: bool = False
) -> None:
    """
    Make the instruments of one limiter, once.

    Args:
        limiter: Of threads or of asyncio. It is read whenever the SDK collects.
        meter_provider: None: the global one.
        time_store_calls: Also record how long the store takes, which costs each call to it a few microseconds.
    """
    meter = (meter_provider or get_meter_provider()).get_meter("sluicegate", limiter.stats().version)
    for metric in METRICS:
        create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
        create(f"sluicegate.{metric.name}", [_callback(limiter, metric)], unit=metric.unit, description=metric.text)
    if time_store_calls:
        histogram = meter.create_histogram(
            f"sluicegate.{STORE_CALL}",
            unit="s",
            description=STORE_CALL_TEXT,
            explicit_bucket_boundaries_advisory=BOUNDS_SECONDS,
        )
        limiter.time_store_calls(histogram.record)


def span_attributes(decision: Decision) -> dict[str, Attribute]:
    """Return what a span may say of a decision; the limit is its name, which operators chose, and never a key."""
    attributes: dict[str, Attribute] = {
        "sluicegate.decision.allowed": decision.allowed,
        "sluicegate.decision.reason": decision.reason,
        "sluicegate.decision.source": decision.source,
        "sluicegate.decision.revision": decision.revision,
    }
    limit = decision.limit
    if limit is not None:
        attributes["sluicegate.limit.name"] = f"{limit.policy}/{limit.name}" if limit.policy else limit.name
        attributes["sluicegate.limit.remaining"] = limit.remaining
    if decision.retry_after_ms is not None:
        attributes["sluicegate.decision.retry_after_ms"] = decision.retry_after_ms
    return attributes


def annotate(decision: Decision, span: Span | None = None) -> None:
    """Write a decision to a span, None: the present one. Nothing is worked out for a span that is not recorded."""
    span = get_current_span() if span is None else span
    if span.is_recording():
        span.set_attributes(span_attributes(decision))


def _callback(limiter: BaseLimiter, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for labels, value in metric.read(limiter.stats()):
            yield Observation(value, {_attribute(name): text for name, text in labels.items()})

    return observe


def _attribute(label: str) -> str:
    return _CONVENTIONAL.get(label, f"sluicegate.{label}")


__all__ = ["annotate", "instrument", "span_attributes"]
