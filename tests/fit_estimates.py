"""
Fit the shipped numbers of typical estimates to the recorded traffic in tests/vectors/recorded/.

    python -m tests.fit_estimates            # say how far estimates are from the truth
    python -m tests.fit_estimates --write    # and write enforcement/metering/shipped.py

Each group of models has five numbers (see :class:`~enforcement.metering.typical.Numbers`). They make the sum of the
differences small, each divided by the square root of the truth, and are pulled to those of the group around. So few
requests move them little, and the number for bytes least. The error is that of requests whose vectors taught nothing.
"""

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import NamedTuple

from controlplane.objects.prices.fitting import solve
from enforcement.metering import typical
from enforcement.metering.request import MeteredRequest, read_request
from enforcement.metering.typical import OTHERS, PLAIN, SCALE, Numbers, groups_of, tool_kind
from tests.enforcement.metering.recorded_vectors import FAMILIES, body_of, vectors_of
from tests.enforcement.metering.wire_vectors import header_of

SHIPPED = Path(typical.__file__).with_name("shipped.py")
ROUNDS = 30
# How far numbers may be from those around them: bytes / 4, objects, tools, one if there are tools, one. Twice the half
# of the vectors, in turn, predicts the other one best with these.
PULL = (30.0, 0.03 / 25, 0.03 / 900, 0.03 / 10_000, 0.03 / 400)
NO_BOUND = re.compile("compound|sonar")  # compound systems ask several models
PER_BYTE = 4
OBJECTS = 1


class Recorded(NamedTuple):
    """A recorded request, and the input tokens that the provider reported."""

    groups: tuple[str, ...]
    text_bytes: int
    objects: int
    tools: int
    own_tools: tuple[str, ...]
    calls: int
    tokens: int

    @property
    def counted(self) -> list[float]:
        return [self.text_bytes / PER_BYTE, self.objects, self.tools, 1.0 if self.tools else 0.0, 1.0]


def recorded() -> list[Recorded]:
    """Return the requests with nothing but text and tools whose tokens are known."""
    vectors = chain.from_iterable(map(vectors_of, FAMILIES))
    return list(chain.from_iterable(map(recorded_of, vectors)))


def recorded_of(vector: Mapping) -> Iterable[Recorded]:
    """Yield the request of a vector, if it is one of these."""
    usage = vector["expected"].get("usage") or {}
    tokens = sum(usage.get(name, 0) for name in ("input", "cached_input", "cache_write"))
    asked = read_of(vector)
    if asked is None or not tokens or any(asked.parts.values()) or asked.keeps_context or not asked.text_bytes:
        return
    model = asked.attributes["model"]
    if not NO_BOUND.search(model) and (asked.own_tools or not asked.unbounded):
        counted = asked.text_bytes, asked.objects, asked.tools
        own = tuple(map(tool_kind, asked.own_tools))
        groups = tuple(name for name in groups_of(model, asked.format) if not name.startswith(f"{OTHERS}/"))
        yield Recorded(groups, *counted, own, usage.get("calls", 0), tokens)


def read_of(vector: Mapping) -> MeteredRequest | None:
    """Return the request of a vector, or None if no meter reads it."""
    request = vector["request"]
    header = header_of({"content-type": "application/json", **request.get("headers", {})})
    asked = read_request(request.get("method", "POST"), request["path"], header, body_of(request))
    return asked if isinstance(asked, MeteredRequest) and asked.has_tokens and not asked.is_counting else None


def fit(rows: Iterable[Recorded]) -> dict[str, Numbers]:
    """Return the numbers of each group of models."""
    members = defaultdict(list)
    for row in rows:
        for group in (*row.groups, ""):
            members[group].append(row)
    found = {"": _fitted(members[""], [1.0, 0.0, 0.0, 0.0, 0.0])}
    for group in sorted(members.keys() - {""}, key=lambda name: name.count("/")):
        found[group] = _fitted(members[group], found[group.rpartition("/")[0]])
    del found[""]  # what is known of no vendor is one token for four bytes
    return {group: _numbers(values) for group, values in sorted(found.items())}


def _numbers(values: Sequence[float]) -> Numbers:
    slope, *others = values
    return Numbers(*(round(value * SCALE / 1_000) * 1_000 for value in (slope / PER_BYTE, *others)))


def _fitted(rows: Sequence[Recorded], around: list[float]) -> list[float]:
    found, most = list(around), [(row.counted, row.tokens) for row in rows]
    middle = median(row.tokens for row in rows) ** 2
    for _ in range(ROUNDS):
        weights = [_weight(sum(map(_times, counted, found)) - tokens, tokens) for counted, tokens in most]
        scale = median(weights) * middle
        left = [[scale * PULL[i] if i == j else 0.0 for j in range(5)] for i in range(5)]
        right = [scale * pull * value for pull, value in zip(PULL, around, strict=True)]
        for (counted, tokens), weight in zip(most, weights, strict=True):
            for i, value in enumerate(counted):
                if not value:
                    continue
                right[i] += weight * value * tokens
                for j, other in enumerate(counted):
                    left[i][j] += weight * value * other
        found = solve(left, right)
        if found[OBJECTS] < 0:  # by chance: of many messages, none has less than no tokens
            left[OBJECTS][OBJECTS] *= 1e9
            found = solve(left, right)
    return found


def _times(one: float, other: float) -> float:
    return one * other


def _weight(difference: float, tokens: int) -> float:
    """Return the weight by which squares become differences."""
    return 1 / (max(tokens, 20) ** 0.5 * max(abs(difference), 2 + 0.02 * tokens))


def estimate(numbers: Mapping[str, Numbers], row: Recorded) -> int:
    """Return the estimate of a request without tools of the provider."""
    found = next((numbers[group] for group in row.groups if group in numbers), PLAIN)
    return found.tokens(row.text_bytes, row.objects, row.tools)


def error(numbers: Mapping[str, Numbers], rows: Sequence[Recorded]) -> float:
    """Return the sum of the differences of estimates by the sum of the tokens."""
    return sum(abs(estimate(numbers, row) - row.tokens) for row in rows) / sum(row.tokens for row in rows)


def held_out(rows: Sequence[Recorded], parts: int, seed: int) -> float:
    """Return the error of requests that taught nothing, when each part of the vectors in turn does not teach."""
    places = list(range(len(rows)))
    random.Random(seed).shuffle(places)
    wrong = 0
    for part in range(parts):
        teach = [rows[place] for number, place in enumerate(places) if number % parts != part]
        judge = [rows[place] for number, place in enumerate(places) if number % parts == part]
        numbers = fit(teach)
        wrong += sum(abs(estimate(numbers, row) - row.tokens) for row in judge)
    return wrong / sum(row.tokens for row in rows)


def tools_of(numbers: Mapping[str, Numbers], rows: Iterable[Recorded]) -> dict[str, int]:
    """Return the input that one use of each tool of the provider adds, in the middle of the requests with it."""
    added = defaultdict(list)
    for row in rows:
        if len(row.own_tools) == 1:
            beyond = (row.tokens - estimate(numbers, row)) / max(1, row.calls)
            added[row.own_tools[0]].append(max(0, beyond))
    return {tool: round(median(values) / 100) * 100 for tool, values in sorted(added.items())}


def document(numbers: Mapping[str, Numbers], tools: Mapping[str, int]) -> str:
    """Return the text of the module with the shipped numbers."""
    lines = ['"""Written by ``python -m tests.fit_estimates --write``. See :mod:`enforcement.metering.typical`."""', ""]
    lines += ["from typing import Final", "", "SHIPPED: Final[dict[str, tuple[int, int, int, int, int]]] = {"]
    lines += [f'    "{group}": ({", ".join(f"{value:_}" for value in found)}),' for group, found in numbers.items()]
    lines += ["}", '"""The numbers of each group of models, in millionths of a token."""', ""]
    lines += ["OWN_TOOLS: Final[dict[str, int]] = {"]
    lines += [f'    "{tool}": {tokens:_},' for tool, tokens in tools.items() if tokens]
    return "\n".join([*lines, "}", '"""Input tokens that one use of a tool of the provider adds."""', ""])


def main() -> int:
    ask = argparse.ArgumentParser(description="Fit the shipped numbers of typical estimates to recorded traffic.")
    ask.add_argument("--write", action="store_true", help="write enforcement/metering/shipped.py")
    options = ask.parse_args()
    rows = recorded()
    plain = [row for row in rows if not row.own_tools]
    numbers = fit(plain)
    halves, fifths = (sum(held_out(plain, parts, seed) for seed in range(3)) / 3 for parts in (2, 5))
    print(f"{len(plain)} requests of text alone. Sum of the errors by that of the tokens:")
    print(f"  one token for four bytes {error({}, plain):.3f}, these numbers {error(numbers, plain):.3f}")
    print(f"  of requests that taught nothing: learned from a half {halves:.3f}, from four fifths {fifths:.3f}")
    text = document(numbers, tools_of(numbers, rows))
    if options.write:
        SHIPPED.write_text(text)
    elif SHIPPED.read_text() != text:
        print("enforcement/metering/shipped.py is not what would be written: use --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
