"""
Export metrics and span attributes to OpenTelemetry.

It needs the extra ``opentelemetry``, which is the API only. Without an SDK it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from enforcement.extras import Requirement

with Requirement("The exporter for OpenTelemetry", "sluicegate[opentelemetry]"):
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import Span, get_current_span

from enforcement.base import BaseLimiter
from enforcement.exporters.metrics import METRICS, STORE_CALL, STORE_CALL_TEXT, Metric
from enforcement.latency import BOUNDS_SECONDS
from enforcement.plan.decision import Decision

Attribute = str | bool | int

# The name of a label in the semantic conventions, if it has one.
_CONVENTIONAL: Final = {"cause": "error.type"}


def instrument(
    limiter: BaseLimiter, *, meter_provider: MeterProvider | None = None, time_store_calls: bool = False
) -> None:
    """
    Create the instruments of a limiter. Call it once for each limiter.

    Args:
        limiter: For threads or asyncio. The SDK reads it at each collection.
        meter_provider: None for the global one.
        time_store_calls: Also record the duration of calls to the store. It costs each call a few microseconds.
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
    """
    Return a decision's attributes for a span as a new dictionary. They name the limit that decides, and never a key or
    a token.
    """
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
    """Set the attributes of a decision on a span, by default the current one, unless it is not recorded."""
    span = get_current_span() if span is None else span
    if span.is_recording():
        span.set_attributes(span_attributes(decision))


def _callback(limiter: BaseLimiter, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for labels, value in metric.read(limiter.stats()):
            yield Observation(value, {_attribute(name): label for name, label in labels.items()})

    return observe


def _attribute(label: str) -> str:
    return _CONVENTIONAL.get(label, f"sluicegate.{label}")


__all__ = ["annotate", "instrument", "span_attributes"]
