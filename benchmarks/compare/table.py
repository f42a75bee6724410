"""The table that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.compare.ratios import Row

HEAD = ("", "OLD", "NEW", "NEW/OLD", "95 % interval", "")


def table(rows: Iterable[Row]) -> str:
    """Return rows as lines of aligned columns."""
    cells = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others[:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned, others[-1]]).rstrip())
    return "\n".join(lines)


def modules(loaded: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Return which modules an import loads now that it did not load before, and the other way round."""
    lines = []
    for what, trees in loaded.items():
        old, new = set(trees["old"]), set(trees["new"])
        lines.append(f"import {what} loads {len(old)} modules in OLD and {len(new)} in NEW.")
        lines += [f"  {sign} {name}" for sign, names in (("+", new - old), ("-", old - new)) for name in sorted(names)]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    it = row.interval
    interval = "exact" if row.exact else f"{it.low:.3f} - {it.high:.3f}"
    return row.name, _number(row.old, row.unit), _number(row.new, row.unit), f"{it.ratio:.3f}", interval, it.verdict


def _number(value: float, unit: str) -> str:
    digits = 2 if value < 100 else 1
    return f"{value:.{digits}f} {unit}"
