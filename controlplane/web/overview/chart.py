"""
The stacked chart of decisions, and the table with the same numbers.

Python writes the elements that every step has, because a template takes longer for hundreds of them than all queries of
the page.
"""

from collections.abc import Iterable, Mapping, Sequence

from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from controlplane.core.sums import rounded_up
from controlplane.web.overview.decisions import Point
from controlplane.web.overview.spans import Span

HEIGHT = 176
TICKS = 6
# The share of the width of a step that is free on each side of its bar.
GAP = 0.16


def chart(series: Sequence[Point]) -> dict[str, object]:
    """Return bars, grid lines and labels of a stacked chart, with x in per cent and y in pixels from the top."""
    top = rounded_up(max((point.counts["allowed"] + point.counts["denied"] for point in series), default=0))
    width = 100 / len(series)
    every = max(1, -(-len(series) // TICKS))
    return {
        "bars": _bars(series, width, top),
        "grid": [{"y": round(HEIGHT * (1 - k / 4), 1), "value": top * k // 4} for k in range(5)],
        "ticks": [{"x": round((i + 0.5) * width, 2), "label": series[i].label} for i in range(0, len(series), every)],
    }


def table(series: Sequence[Point], span: Span) -> SafeString:
    """Return the rows of the table, the last step first, without those that counted nothing."""
    rows = (
        (point.url, span.start_of_row(point.at), *_numbers(point.counts, "allowed", "denied", "would_deny"))
        for point in reversed(series)
        if any(point.counts.values())
    )
    cells = '<td class="sg-n">{}</td>' * 3
    return format_html_join("", f'<tr><th scope="row"><a href="{{}}">{{}}</a></th>{cells}</tr>', rows)


def _bars(series: Iterable[Point], width: float, top: int) -> SafeString:
    bars = (
        (
            point.label,
            _title(point.counts),
            _parts(point.counts, round((index + GAP) * width, 2), round(width * (1 - 2 * GAP), 2), top),
        )
        for index, point in enumerate(series)
    )
    return format_html_join("", "<g><title>{}: {}</title>{}</g>", (bar for bar in bars if bar[2]))


def _parts(counts: Mapping[str, int], x: float, width: float, top: int) -> SafeString:
    """Return the rectangles of a bar, from its foot upwards."""
    # A request that a shadow limit would have denied was allowed, so the first two parts of a bar are its allowed ones.
    kinds = ("a", counts["allowed"] - counts["would_deny"]), ("w", counts["would_deny"]), ("d", counts["denied"])
    parts, floor = [], float(HEIGHT)
    for kind, count in kinds:
        height = HEIGHT * max(count, 0) / top
        floor -= height
        if count > 0:
            parts.append((kind, x, width, round(floor, 1), round(max(height, 0.5), 1)))
    return format_html_join("", '<rect class="sg-{}" x="{}%" width="{}%" y="{}" height="{}"/>', parts)


def _title(counts: Mapping[str, int]) -> str:
    allowed, denied, would_deny = _numbers(counts, "allowed", "denied", "would_deny")
    shadow = f", of which {would_deny} would be denied by shadow limits" if counts["would_deny"] else ""
    return f"{allowed} allowed{shadow}; {denied} denied"


def _numbers(counts: Mapping[str, int], *names: str) -> list[str]:
    return [f"{counts[name]:,}" for name in names]
