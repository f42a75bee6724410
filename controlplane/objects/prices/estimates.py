"""
Numbers for estimates, learned from what was counted in requests and what the providers have reported.

They hold for all tenants, so none of them may decide alone: each project has one vote, whatever it reports and however
often. Votes are as large as each other, and what one says of the level is moved to 1.5 times that of the project in the
middle, at most. Whatever is learned, the estimate of a request stays from half to double of the shipped one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import add

from django.db.models import FloatField, Sum
from django.db.models.functions import Cast

from controlplane.changes.words.words import in_a_terminal
from controlplane.core.periods import start_of
from controlplane.objects.prices.fitting import Matrix, solve
from controlplane.objects.prices.models import GROUP, TOOL, LearnedEstimate
from controlplane.objects.prices.samples import EstimateSample
from enforcement.metering.price_documents import MAX_GROUP_LENGTH, MAX_LEARNED, MAX_NUMBER_LEARNED, MAX_TOOL_TOKENS
from enforcement.metering.samples import MAX_SUM, MAX_TIMES, SAMPLE_COUNTS, SUMS
from enforcement.metering.shipped import OWN_TOOLS, SHIPPED
from enforcement.metering.typical import PLAIN, SCALE, groups_of

# The last complete days in UTC. They decide alone, so a run that comes late or twice finds the same.
DAYS = 7
# A group with fewer has the numbers of the group around it.
LEAST_REQUESTS = 20
# More requests of a project do not weaken the pull to the numbers around.
MOST_REQUESTS = 1_000
# Per cent of an estimate. Each publication is a revision that every instance has to load.
LEAST_CHANGE = 5
# Numbers that nobody has used for so long are forgotten.
FORGOTTEN_AFTER = timedelta(days=90)
_WORDS = ((".3f", "a byte"), (".1f", "an object"), (".0f", "a tool"), (".0f", "with tools"), (".0f", "once"))
# The usual difference of each number from others, in tokens: for a byte, an object, a tool, tools at all, and once.
USUAL = (0.25, 5.0, 30.0, 100.0, 20.0)
# How many requests the numbers around count for. That for bytes differs least between groups.
PULL = (30.0, 0.3, 0.3, 0.3, 0.3)
MOST_BESIDE = 1.5

_BYTES, _OBJECTS, _TOOLS, _ANY, _ONE = range(5)
_NAMES = ("bytes", "objects", "tools", "any", "one")
# A request with tools has them once, so that these are the same.
_SAME = {"tools_one": "tools_any", "any_one": "any_any", "any_tools": "tools_any"}


@dataclass(frozen=True, slots=True)
class _Sums:
    """The reports of one project about one group: requests, uses, reported tokens, error, and the sums of squares."""

    values: tuple[int, ...]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(tuple(map(add, self.values, other.values)))

    def get(self, name: str) -> int:
        return self.values[_PLACES[name]]

    def product(self, one: int, other: int) -> int:
        names = (f"{_NAMES[one]}_{_NAMES[other]}", f"{_NAMES[other]}_{_NAMES[one]}")
        name = next(_SAME.get(name, name) for name in names if _SAME.get(name, name) in _PLACES)
        return self.get(name)


_PLACES = {name: place for place, name in enumerate((*SAMPLE_COUNTS, *SUMS))}


@dataclass(frozen=True, slots=True)
class _Vote:
    """The equations of one project, all of which have the same size: its matrix has the trace 1."""

    matrix: Matrix
    right: list[float]
    requests: int


@dataclass(frozen=True, slots=True)
class Measured:
    """
    The measured numbers of a group of models, or of a kind of tool, with the requests and projects they rest on.

    ``error`` is that of the estimates so far, per mille of the reported tokens, and None of a tool.
    """

    kind: str
    name: str
    numbers: tuple[int, ...]
    requests: int
    projects: int
    error: int | None
    differs: bool


@dataclass(frozen=True, slots=True)
class EstimateChange:
    """A change of an estimate. ``measured`` is None if it is forgotten, so that the shipped numbers hold again."""

    kind: str
    name: str
    old: tuple[int, ...] | None
    measured: Measured | None

    def __str__(self) -> str:
        found = self.measured
        was = "shipped" if self.old is None else in_words(self.kind, self.old)
        if found is None:
            return f"{self.name}: {in_a_terminal(was, 'shipped')}, not used in {FORGOTTEN_AFTER.days} days"
        by = f"by {found.requests:,} requests of {found.projects} projects"
        return f"{self.name}: {in_a_terminal(was, in_words(self.kind, found.numbers))}, {by}"


def in_words(kind: str, numbers: Sequence[int]) -> str:
    """Return learned numbers as people read them, without those that are 0."""
    if kind == TOOL:
        return f"{numbers[0]:,} tokens a use"
    found = zip(_WORDS, numbers, strict=True)
    return ", ".join(f"{number / SCALE:{form}} {word}" for (form, word), number in found if number) or "0"


def measure(now: datetime) -> list[Measured]:
    """Return what the last seven complete days say of each group and tool that has enough requests, as a new list."""
    groups: dict[str, dict[str, _Sums]] = defaultdict(dict)
    tools: dict[str, dict[str, _Sums]] = defaultdict(dict)
    around: dict[str, tuple[str, ...]] = {}
    for model, interface, tool, project, sums in _rows(now):
        chain = (tool,) if tool else groups_of(model, interface)
        for place, name in enumerate(chain):
            if len(name) <= MAX_GROUP_LENGTH:
                by_project = (tools if tool else groups)[name]
                by_project[project] = by_project[project] + sums if project in by_project else sums
                around[name] = chain[place:]
    return [*_of_groups(groups, around), *_of_tools(tools)]


def _rows(now: datetime) -> Iterable[tuple[str, str, str, str, _Sums]]:
    today = start_of("day", now)
    keys = "model", "interface", "tool", "project_id"
    # Each number is at most 2**61, and the integers of SQLite end at 2**63.
    sums = {f"of_{name}": Sum(Cast(name, FloatField())) for name in _PLACES}
    rows = EstimateSample.objects.filter(day__gte=today - timedelta(days=DAYS), day__lt=today)
    found = rows.values(*keys).annotate(**sums).order_by(*keys).values_list(*keys, *sums)
    for model, interface, tool, project, *numbers in found.iterator():
        yield model, interface, tool, project, _Sums(tuple(map(int, numbers)))


def _of_groups(groups: Mapping[str, Mapping[str, _Sums]], around: Mapping[str, tuple[str, ...]]) -> Iterable[Measured]:
    learned: dict[str, list[float]] = {}
    present = LearnedEstimate.objects.filter(kind=GROUP).by_name()
    for name in sorted(groups, key=lambda name: (len(around[name]), name)):
        by_project = groups[name]
        requests = _requests_of(by_project.values())
        if requests < LEAST_REQUESTS:
            continue
        shipped = _shipped(around[name])
        outer = next((group for group in around[name][1:] if group in learned), None)
        start = list(shipped)
        if outer is not None:  # what was learned of the group around holds for this one, too
            moved = zip(shipped, learned[outer], _shipped(around[outer]), strict=True)
            start = [one + new - old for one, new, old in moved]
        votes = _votes(by_project.values(), shipped)
        if not votes:
            continue
        matrix, right, weight = _together(votes)
        found = learned[name] = _fitted(matrix, right, start, weight)
        numbers = tuple(_bounded(value * usual) for value, usual in zip(found, USUAL, strict=True))
        before = _by_usual(present[name]) if name in present else start
        reported = sum(sums.get("reported") for sums in by_project.values())
        wrong = sum(sums.get("error") for sums in by_project.values())
        error = min(1_000 * wrong // max(1, reported), 1_000_000)
        yield Measured(GROUP, name, numbers, requests, len(votes), error, _differ(matrix, found, before))


def _requests_of(projects: Iterable[_Sums]) -> int:
    """Return how many requests there were, at most as many as a column can have: rows may be made up."""
    return min(sum(sums.get("requests") for sums in projects), MAX_SUM)


def _shipped(chain: Sequence[str]) -> list[float]:
    """Return the shipped numbers of a group, each by its usual difference."""
    return _by_usual(next((SHIPPED[group] for group in chain if group in SHIPPED), PLAIN))


def _by_usual(numbers: Sequence[int]) -> list[float]:
    return [value / SCALE / usual for value, usual in zip(numbers, USUAL, strict=True)]


def _votes(projects: Iterable[_Sums], shipped: Sequence[float]) -> list[_Vote]:
    """Return the votes of projects. What cannot be the sum of any requests is none."""
    votes = [vote for vote in map(_vote, projects) if vote is not None]
    levels = [_level(vote, shipped) for vote in votes]
    middle = _median(levels)
    return [_moved(vote, level, middle) for vote, level in zip(votes, levels, strict=True)]


def _vote(sums: _Sums) -> _Vote | None:
    size = range(len(USUAL))
    matrix = [[USUAL[i] * USUAL[j] * sums.product(i, j) for j in size] for i in size]
    trace = sum(matrix[i][i] for i in size)
    if sums.get("requests") <= 0 or trace <= 0:
        return None
    if any(matrix[i][j] ** 2 > 1.01 * matrix[i][i] * matrix[j][j] + 1 for i in size for j in size):
        return None
    matrix = [[value / trace for value in row] for row in matrix]
    # No request counts with more than four times its expected tokens.
    most = [2 * MAX_TIMES * matrix[i][i] ** 0.5 for i in size]
    right = [min(USUAL[i] * sums.get(f"{_NAMES[i]}_tokens") / trace, most[i]) for i in size]
    return _Vote(matrix, right, sums.get("requests"))


def _level(vote: _Vote, shipped: Sequence[float]) -> float:
    """Return how many times the shipped estimates a project reports."""
    expected = _form(vote.matrix, shipped, shipped)
    return sum(map(_times, shipped, vote.right)) / expected if expected > 0 else 1.0


def _moved(vote: _Vote, level: float, middle: float) -> _Vote:
    near = min(max(level, middle / MOST_BESIDE), middle * MOST_BESIDE)
    if near == level or level <= 0:
        return vote
    return _Vote(vote.matrix, [value * near / level for value in vote.right], vote.requests)


def _together(votes: Sequence[_Vote]) -> tuple[Matrix, list[float], int]:
    """Return the mean of the votes, and for how many requests it counts. A project with few requests counts less."""
    weights = [vote.requests / (vote.requests + LEAST_REQUESTS) for vote in votes]
    total, size = sum(weights), range(len(USUAL))
    pairs = list(zip(weights, votes, strict=True))
    matrix = [[sum(w * vote.matrix[i][j] for w, vote in pairs) / total for j in size] for i in size]
    right = [sum(w * vote.right[i] for w, vote in pairs) / total for i in size]
    return matrix, right, sum(min(vote.requests, MOST_REQUESTS) for vote in votes)


def _fitted(matrix: Matrix, right: Sequence[float], start: Sequence[float], requests: int) -> list[float]:
    """Return the numbers that fit best, and are near to those that were known before."""
    pulls = [pull / requests for pull in PULL]
    left = [[value + (pulls[i] if i == j else 0) for j, value in enumerate(row)] for i, row in enumerate(matrix)]
    wanted = [value + pull * known for value, pull, known in zip(right, pulls, start, strict=True)]
    result = solve(left, wanted)
    if result[_OBJECTS] < 0:
        left[_OBJECTS][_OBJECTS] *= 1e9
        result = solve(left, wanted)
    return result


def _differ(matrix: Matrix, new: Sequence[float], old: Sequence[float]) -> bool:
    """Return whether estimates of requests like these would change enough."""
    change = [one - other for one, other in zip(new, old, strict=True)]
    return _form(matrix, change, change) * 10_000 >= LEAST_CHANGE**2 * _form(matrix, old, old)


def _form(matrix: Matrix, one: Sequence[float], other: Sequence[float]) -> float:
    return sum(value * sum(map(_times, row, other)) for value, row in zip(one, matrix, strict=True))


def _times(one: float, other: float) -> float:
    return one * other


def _bounded(tokens: float) -> int:
    return min(max(round(tokens * SCALE), -MAX_NUMBER_LEARNED), MAX_NUMBER_LEARNED)


def _of_tools(tools: Mapping[str, Mapping[str, _Sums]]) -> Iterable[Measured]:
    present = LearnedEstimate.objects.filter(kind=TOOL).by_name()
    for name, by_project in sorted(tools.items()):
        requests = _requests_of(by_project.values())
        if requests < LEAST_REQUESTS:
            continue
        added = [sums.get("reported") // max(1, sums.get("uses")) for sums in by_project.values()]
        tokens = min(int(_median(added)), MAX_TOOL_TOKENS)
        old = present[name][0] if name in present else OWN_TOOLS.get(name, 0)
        differs = abs(tokens - old) * 100 >= LEAST_CHANGE * max(old, 1)
        yield Measured(TOOL, name, (tokens,), requests, len(by_project), None, differs)


def _median(values: Sequence[float]) -> float:
    """Return the value in the middle, the higher one of two, because an estimate that is too low exceeds a budget."""
    return sorted(values)[len(values) // 2] if values else 1.0


def changes(measured: Iterable[Measured], now: datetime) -> list[EstimateChange]:
    """
    Return how the present numbers should change, by their names. A change of estimates by less than 5 % is none.

    There are at most as many groups as a document may have. New ones go first to those of most projects, so that nobody
    can take all places with names that are made up.
    """
    rows = list(measured)
    groups, tools = ([row for row in rows if row.kind == kind] for kind in (GROUP, TOOL))
    return [*_changes(GROUP, groups, now), *_changes(TOOL, tools, now)]


def _changes(kind: str, measured: Sequence[Measured], now: datetime) -> list[EstimateChange]:
    present = LearnedEstimate.objects.filter(kind=kind).by_name()
    forgotten = _forgotten(kind, present, now)
    differ = [one for one in measured if one.differs]
    new = sorted((one for one in differ if one.name not in present), key=_most_used)
    room = MAX_LEARNED - len(present) + len(forgotten)
    chosen = [one for one in differ if one.name in present] + new[: max(0, room)]
    found = [EstimateChange(kind, one.name, present.get(one.name), one) for one in chosen]
    found += [EstimateChange(kind, name, present[name], None) for name in forgotten]
    return sorted(found, key=lambda one: one.name)


def _forgotten(kind: str, present: Mapping[str, tuple[int, ...]], now: datetime) -> list[str]:
    if not present:
        return []
    rows = EstimateSample.objects.filter(day__gte=now - FORGOTTEN_AFTER)
    seen: set[str] = set()
    for model, interface, tool in rows.order_by().values_list("model", "interface", "tool").distinct():
        seen.update((tool,) if tool else groups_of(model, interface))
    return [name for name in present if name not in seen]


def _most_used(one: Measured) -> tuple[int, int, str]:
    return -one.projects, -one.requests, one.name
