"""Which limits a sample request falls under, and what the folded parts of a limit say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.core.money import permits
from enforcement.model.limit_fields import attribute
from enforcement.model.limits import Limit
from enforcement.model.matching import LABEL_PREFIX, Match, is_label

FAILURES = {
    "local": "each proxy keeps its share of the quota",
    "allow": "every request passes",
    "deny": "every request is denied",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """Whether a limit counts a sample request, and why not in words, which are empty if it does."""

    matches: bool
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def tried(limit: Limit, attributes: Mapping[str, str], cost: int = 1) -> Tried:
    """
    Return whether a request with these attributes falls under a limit.

    Args:
        attributes: Those of the request, and labels of its token as ``label.team``.
        cost: Its cost in the unit of the limit.
    """
    for name in (*limit.partition_by, *limit.match.attributes):
        if name not in attributes:
            holder = "token" if is_label(name) else "request"
            return Tried(False, f"the {holder} has no {name.removeprefix(LABEL_PREFIX)}")
    for name, rule, words in _rules(limit.match):
        if name not in attributes:
            return Tried(False, f"the request has no {name}")
        if not _fits(rule, attributes):
            return Tried(False, f"{attribute(name)} is not {words}")
    if cost > limit.capacity:
        return Tried(True, f"a cost of {permits(cost, limit.unit)} never fits, so it is denied")
    return Tried(True)


def _rules(match: Match) -> Iterator[tuple[str, Match, str]]:
    if match.methods:
        yield "method", Match(methods=match.methods), " or ".join(match.methods)
    if match.path:
        yield "path", Match(path=match.path, published=True), match.path
    for name, rule in match.attributes.items():
        words = " or ".join(rule) if isinstance(rule, tuple) else rule
        yield name, Match(attributes={name: rule}, published=True), words


def _fits(match: Match, attributes: Mapping[str, str]) -> bool:
    test = match.compile()
    return (test is None or test(attributes)) and match.fits(attributes)


def sample(method: str, path: str, lines: Sequence[str]) -> dict[str, str]:
    """
    Return the attributes of a sample request from the fields of a form.

    Args:
        lines: Such as ``model = gpt-4o-mini``. A line without a name or a value is left out.
    """
    pairs = (line.partition("=") for line in lines)
    attributes = {name.strip(): value.strip() for name, _, value in pairs if name.strip() and value.strip()}
    given = {"method": method.strip().upper(), "path": path.strip()}
    return attributes | {name: value for name, value in given.items() if value}


def folded(limit: Limit) -> dict[str, str]:
    """Return, for each folded part of a limit's form, what it says while it is closed."""
    match = limit.match
    which = [" or ".join(match.methods) or "every method", match.path or "every path"]
    rules = ((attribute(name), " or ".join(r) if isinstance(r, tuple) else r) for name, r in match.attributes.items())
    which += [f"{name} {rule}" for name, rule in rules]
    exact = "exact over the fleet" if limit.consistency == "strict" else "with permits on lease"
    how = [limit.algorithm.replace("_", " "), exact]
    how += [f"{limit.time_zone} time"] if limit.calendar and limit.calendar != "lifetime" else []
    how += [f"charged for {' and '.join(limit.charge_on)}"] if limit.charge_on else []
    return {"which": ", ".join(which), "how": ", ".join(how), "failure": FAILURES[limit.on_store_failure]}
