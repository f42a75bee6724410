"""Write metrics as Prometheus reads them, for servers that have no exporter of their own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from enforcement.exporters.metrics import METRICS, STORE_CALL, STORE_CALL_TEXT, Labels, Metric
from enforcement.stats import Stats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
WORKERS_VARIABLE: Final = "_SLUICEGATE_WORKERS"
"""The number of processes that share a port. ``sluicegate serve`` and ``sluicegate proxy`` set it for their workers."""

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def exposition(stats: Stats, others: Iterable[Metric] = ()) -> bytes:
    """
    Return metrics of a limiter and others in Prometheus' text format, with the names that its exporter has for them.

    If several processes share a port, each scrape is answered by one of them. Their counters must not become one
    series, so each process then adds the label ``worker`` with its id.
    """
    worker = {"worker": str(os.getpid())} if os.environ.get(WORKERS_VARIABLE, "1") != "1" else {}
    lines = [*_heading("sluicegate_enforcer_info", "gauge", "Always 1.")]
    lines.append(_line("sluicegate_enforcer_info", {"version": stats.version, **worker}, 1))
    for metric in (*METRICS, *others):
        name = prometheus_name(metric.name, metric.unit)
        name += "_total" if metric.kind == "counter" else ""
        lines += _heading(name, metric.kind, metric.text)
        lines += [_line(name, {**labels, **worker}, value) for labels, value in metric.read(stats)]
    if (calls := stats.store_calls) is not None:
        name = prometheus_name(STORE_CALL, "s")
        lines += _heading(name, "histogram", STORE_CALL_TEXT)
        bounds = [*map(str, calls.bounds_seconds), "+Inf"]
        counts = list(accumulate(calls.counts))
        pairs = zip(bounds, counts, strict=True)
        lines += [_line(f"{name}_bucket", {"le": le, **worker}, count) for le, count in pairs]
        lines += [_line(f"{name}_count", worker, counts[-1]), _line(f"{name}_sum", worker, calls.total_seconds)]
    return ("\n".join(lines) + "\n").encode()


def prometheus_name(dotted: str, unit: str) -> str:
    """Return the name of a metric as Prometheus spells it, without the ``_total`` of a counter."""
    return f"sluicegate_{dotted.replace('.', '_')}" + ("_seconds" if unit == "s" else "")


def _heading(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{text.translate(_ESCAPED)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"
