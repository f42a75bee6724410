"""Two pictures of a run, small SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.measure import Series

LINKS = ("![p50 of a decision](latency.svg)", "![decisions a second at 50 concurrent](throughput.svg)")
"""What a page says to show them."""

OURS, THEIRS = "#1f6f8b", "#b8c4cc"
Bar = tuple[str, str, float, float | None]
"""Group, candidate, length, and where a line from its end leads."""
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "sluicegate", "font.size": 9, "font.family": "sans-serif"}

LATENCY = {
    "1 limit, fixed window": ("hit fixed", "check fixed", "redis-py EVALSHA", "limits fixed"),
    "1 limit, sliding": ("hit sliding", "check sliding", "limits sliding"),
    "1 limit, bucket": ("hit bucket", "check bucket", "throttled-py GCRA"),
    "3 limits": ("hit three", "check three", "limits, three calls"),
}
THROUGHPUT = {
    "1 limit": ("hit", "check", "redis.asyncio EVALSHA", "limits.aio", "throttled-py asyncio GCRA"),
    "3 limits": ("hit three", "check three", "limits.aio, three calls"),
}


def draw(folder: Path, threads: Series, tasks: Series) -> None:
    """Draw both pictures into a folder."""
    latency = [(group, name, threads.median(name), threads.median(name, "p99")) for group, name in _each(LATENCY)]
    _bars(folder / "latency.svg", "Microseconds of a decision, one after the other: p50, line to p99", latency)
    rates = [(group, name, tasks.median(name, "per_second") / 1e3, None) for group, name in _each(THROUGHPUT)]
    _bars(folder / "throughput.svg", "Thousand decisions a second, 50 tasks in one process", rates)


def _each(groups: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(group, name) for group, names in groups.items() for name in names]


def _is_ours(name: str) -> bool:
    return name.split()[0] in ("check", "hit")


def _bars(path: Path, title: str, bars: Sequence[Bar]) -> None:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 0.5 + 0.28 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for place, (_, name, value, far) in enumerate(bars):
            axes.barh(place, value, color=OURS if _is_ours(name) else THEIRS)
            if far is not None:
                axes.plot([value, far], [place, place], color="#555555", linewidth=1)
            told = f" {value:,.1f}" if far is None else f" {value:,.1f}, p99 {far:,.0f}"
            axes.text(far or value, place, told, va="center")
        labels = [f"{group}: {f'Sluicegate {name.split()[0]}' if _is_ours(name) else name}" for group, name, *_ in bars]
        axes.set_yticks(range(len(bars)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        # Without a date the same figures give the same file.
        figure.savefig(path, metadata={"Date": None})
