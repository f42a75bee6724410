"""Advice on the form of a policy while somebody types in it."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from django.db.models import QuerySet

from controlplane.changes.words.effects import differing
from controlplane.core.instants import exact
from controlplane.core.money import InvalidAmount, quantity, read_permits
from controlplane.core.optional import USAGE, optional
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.usage import units
from controlplane.web.kit.amounts import money_unit
from controlplane.web.pages.policies.hints import traffic
from controlplane.web.pages.policies.hints.rules import Advice, warnings
from controlplane.web.pages.policies.hints.trying import folded, sample, tried
from controlplane.web.pages.policies.limit_form import LoneLimitForm, explain, in_brief
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.matching import LABEL_PREFIX, Match, is_label
from enforcement.model.metered import MONEY
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

PREFIX = "limits"
MOST_COST = 10**15
ONE_DENIAL = "The only sampled denial of the last 7 days that tells it had no such"


def advise(policy: Policy, posted: Mapping[str, str], projects: QuerySet[Project], now: datetime) -> dict[str, Any]:
    """
    Return what each row of the posted form means, what may be unwise about it, and what a sample request falls under.

    Args:
        policy: The saved policy, or a new one.
        posted: The fields of the whole form, with those of the sample request.
        projects: Those that the user may see.
    Returns:
        ``limits`` has a dictionary for each row by its prefix, such as "limits-0". ``request`` has one for the sample.
    """
    if policy._state.adding and posted.get("project"):
        policy.project = projects.filter(pk=posted["project"]).first()
    rows = {prefix: _fields(posted, prefix) for prefix in _prefixes(posted)}
    limits = {prefix: explain(policy, fields.items()) for prefix, fields in rows.items()}
    values = {prefix: value for prefix, fields in rows.items() if (value := _value(policy, fields)) is not None}
    found = warnings(values, _number(posted.get("default_cap", "")))
    seen = _Seen(policy, projects, now)
    for prefix, value in values.items():
        advice = [*found[prefix], *seen.about(value, rows[prefix].get("id", ""))]
        limits[prefix] |= {"folded": folded(value), "warnings": [one.as_json() for one in advice]}
        limits[prefix]["brief"] = in_brief(value, policy)
    for prefix, fields in rows.items():
        limits[prefix]["changed"] = seen.differs(values.get(prefix), fields.get("id", ""))
    return {"limits": limits, "request": _tried(values, posted)}


def _prefixes(posted: Mapping[str, str]) -> list[str]:
    """Return the prefixes of the rows that are not about to be removed."""
    count = min(_number(posted.get(f"{PREFIX}-TOTAL_FORMS", "")) or 0, 2 * MAX_LIMITS_PER_POLICY)
    prefixes = [f"{PREFIX}-{index}" for index in range(count)]
    return [prefix for prefix in prefixes if f"{prefix}-name" in posted and not posted.get(f"{prefix}-DELETE")]


def _fields(posted: Mapping[str, str], prefix: str) -> dict[str, str]:
    start = f"{prefix}-"
    return {name.removeprefix(start): value for name, value in posted.items() if name.startswith(start)}


def _value(policy: Policy, fields: Mapping[str, str]) -> LimitValue | None:
    """Return the limit of a row, or None if it is not valid."""
    form = LoneLimitForm(dict(fields), instance=Limit(policy=policy))
    try:
        return form.instance.as_value() if form.is_valid() else None
    except InvalidLimit:
        return None


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _tried(values: Mapping[str, LimitValue], posted: Mapping[str, str]) -> dict[str, Any] | None:
    """Return which limits match the sample request and a sentence, or None if nothing is typed."""
    method, path, lines = (posted.get(f"try_{name}", "") for name in ("method", "path", "attributes"))
    attributes = sample(method, path, lines.split("\n"))
    if not path.strip():
        return None
    cost = posted.get("try_cost", "")
    rows = [
        {"prefix": prefix, "name": value.name, **tried(value, attributes, _cost(cost, value.unit)).as_json()}
        for prefix, value in values.items()
    ]
    matching = sum(row["matches"] for row in rows)
    hopeless = [row["name"] for row in rows if row["matches"] and row["why"]]
    sentence = f"{matching} of {len(rows)} limit{'' if len(rows) == 1 else 's'} match{'es' if matching == 1 else ''}."
    if hopeless:
        sentence += f" The request is always denied by {' and '.join(hopeless)}."
    return {"sentence": sentence, "limits": rows}


def _cost(text: str, unit: str) -> int:
    """Return the cost that is typed for the sample request, as an amount for money, or 1 if it is none in this unit."""
    try:
        cost = read_permits(text, unit)
        return cost if 0 < cost <= MOST_COST else 1
    except InvalidAmount:
        return 1


class _Seen:
    """The attributes and units in requests of the last days, read only if a limit asks for them."""

    def __init__(self, policy: Policy, projects: QuerySet[Project], now: datetime) -> None:
        self.policy, self.now = policy, now
        self.projects = projects.filter(pk=policy.project_id) if policy.project_id else projects
        saved = [] if policy._state.adding else policy.limits.all()
        self._saved = {limit.pk: limit for limit in saved}

    @cached_property
    def _sample(self) -> traffic.Sample:
        return optional(USAGE, lambda *_: traffic.Sample(()))(traffic.sampled)(self.projects, self.now)

    @cached_property
    def _silent(self) -> dict[str, datetime]:
        return optional(USAGE, lambda *_: {})(traffic.never_matched)(self.policy, self.projects, self.now)

    def differs(self, limit: LimitValue | None, key: str) -> bool:
        """Return whether a row differs from the saved limit with its id, or has none. One that is not valid does."""
        saved = self._saved.get(key)
        try:
            return saved is None or limit is None or saved.as_value() != limit
        except InvalidLimit:  # another program has written to the table
            return True

    def about(self, limit: LimitValue, key: str) -> Iterator[Advice]:
        """
        Yield what is known about the requests that a limit is for.

        Args:
            key: The id of its row, or an empty string for a new one.
        """
        match = limit.match
        yield from self._of_money_and_units(limit, self._saved.get(key))
        if not (match.path or match.methods or match.attributes or limit.partition_by):
            return
        saved = self._saved.get(key)
        was = saved.as_value() if saved else None
        if was and (was.match, was.partition_by) == (match, limit.partition_by):
            # Usage counts what this very limit has matched.
            yield from self._unmatched(was.name)
            return
        if match.methods:
            yield from self._sampled("match_methods", "method", Match(methods=match.methods))
        if match.path:
            yield from self._sampled("match_path", "path", Match(path=match.path), match.path)
        for name, rule in match.attributes.items():
            if not is_label(name):
                yield from self._sampled("match_attributes", name, Match(attributes={name: rule}))
        yield from self._labels("match_attributes", match.attributes)
        yield from self._labels("partition_by", limit.partition_by)

    def _of_money_and_units(self, limit: LimitValue, saved: Limit | None) -> Iterator[Advice]:
        """Yield what is odd about the unit of a limit, its amount after another unit, and the zone of a budget."""
        if units.idle([limit.unit]):
            yield Advice("unit", units.advice(limit.unit, money=money_unit()))
        if saved and "unit" in differing(saved.as_value(), limit):
            was, becomes = quantity(saved.quota, saved.unit), quantity(limit.quota, limit.unit)
            text = f"Nothing is converted to the new unit: {was} becomes {becomes}. The counter keeps its number, too."
            yield Advice("quota", text)
        if limit.unit == MONEY and (said := units.zone_advice(limit, units.zones_of(self.policy)[self.policy.pk])):
            yield Advice("time_zone", said)

    def _unmatched(self, name: str) -> Iterator[Advice]:
        if name in self._silent:
            since = exact(self._silent[name])
            yield Advice("match_path", f"No request has matched since {since}, and others of this policy came.")

    def _sampled(self, field: str, name: str, rule: Match, pattern: str = "") -> Iterator[Advice]:
        """Yield what the sampled denials tell about one rule. That some of them fit it is nothing to say."""
        seen = self._sample.values(name)
        if not seen:
            text = f"Not known whether requests have such a {name}: no sampled denial of the last 7 days tells it, and "
            yield Advice(field, f"{text}passed requests are not recorded. A day in shadow shows it.", "info")
        elif not traffic.fits(rule, name, seen):
            count = seen.total()
            those = f"None of the {count:,} sampled denials of the last 7 days that tell it had such a"
            text = f"{those if count > 1 else ONE_DENIAL} {name}. "
            near = traffic.similar(pattern, seen) if pattern else []
            rest = f"Similar ones: {', '.join(near)}." if near else "Passed requests are not recorded."
            yield Advice(field, text + rest)

    def _labels(self, field: str, names: Iterable[str]) -> Iterator[Advice]:
        """Yield which labels no token has. Those are known, as the limits of a token are found by its own labels."""
        tokens = Token.objects.filter(project__in=self.projects)
        for name in filter(is_label, names):
            if not tokens.with_label(name.removeprefix(LABEL_PREFIX)).exists():
                yield Advice(field, f"No token has the label {name.removeprefix(LABEL_PREFIX)}.")
