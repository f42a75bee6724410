"""What the form of a policy says while somebody types in it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db.models import QuerySet

from controlplane.adminkit.times import exact
from controlplane.advice import traffic
from controlplane.advice.rules import Advice, warnings
from controlplane.advice.trying import folded, sample, tried
from controlplane.policies.limit_form import LoneLimitForm, explain
from controlplane.policies.models import Limit, Policy
from controlplane.projects.models import Project
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

PREFIX = "limits"
MOST_COST = 10**15


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
    rows = {prefix: _fields(posted, prefix) for prefix in _prefixes(posted)}
    told = {prefix: explain(policy, fields.items()) for prefix, fields in rows.items()}
    values = {prefix: value for prefix, fields in rows.items() if (value := _value(policy, fields)) is not None}
    found = warnings(values, _number(posted.get("default_cap", "")))
    seen = _Seen(policy, projects, now)
    for prefix, value in values.items():
        advice = [*found[prefix], *seen.about(value, rows[prefix].get("id", ""))]
        told[prefix] |= {"folded": folded(value), "warnings": [one.as_json() for one in advice]}
    return {"limits": told, "request": _tried(values, posted)}


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
    cost = _number(posted.get("try_cost", "")) or 1
    rows = [
        {"prefix": prefix, "name": value.name, **tried(value, attributes, cost).as_json()}
        for prefix, value in values.items()
    ]
    matching = sum(row["matches"] for row in rows)
    hopeless = [row["name"] for row in rows if row["matches"] and row["why"]]
    sentence = f"{matching} of {len(rows)} limit{'' if len(rows) == 1 else 's'} match{'es' if matching == 1 else ''}."
    if hopeless:
        sentence += f" The request is always denied by {' and '.join(hopeless)}."
    return {"sentence": sentence, "limits": rows}


class _Seen:
    """What requests of the last days had, read only if a limit asks for it."""

    def __init__(self, policy: Policy, projects: QuerySet[Project], now: datetime) -> None:
        self.policy, self.now = policy, now
        self.projects = projects.filter(pk=policy.project_id) if policy.project_id else projects
        self._paths: Any = None
        self._silent: dict[str, datetime] | None = None
        saved = [] if policy._state.adding else policy.limits.all()
        self._saved = {limit.pk: limit for limit in saved}

    def about(self, limit: LimitValue, key: str) -> list[Advice]:
        """
        Return what is known about the requests that a limit is for.

        Args:
            key: The id of its row, or an empty string for a new one.
        """
        if not (limit.match.path or limit.match.methods or limit.match.attributes or limit.partition_by):
            return []
        saved = self._saved.get(key)
        was = saved.as_value() if saved else None
        if was and (was.match, was.partition_by) == (limit.match, limit.partition_by):
            return self._unmatched(was.name)
        return self._similar(limit.match.path)

    def _unmatched(self, name: str) -> list[Advice]:
        if self._silent is None:
            self._silent = traffic.never_matched(self.policy, self.projects, self.now)
        if name not in self._silent:
            return []
        since = self._silent[name]
        return [Advice("match_path", f"No request has matched since {exact(since)}, and others of this policy came.")]

    def _similar(self, pattern: str) -> list[Advice]:
        if not pattern:
            return []
        if self._paths is None:
            self._paths = traffic.paths_of(self.projects, self.now)
        near = traffic.similar(pattern, self._paths)
        if not near:
            return []
        total = sum(self._paths.values())
        text = f"None of {total:,} sampled denials of the last 7 days had such a path. Similar ones: {', '.join(near)}."
        return [Advice("match_path", text)]
