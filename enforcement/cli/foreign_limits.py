"""
Translate the rules of other rate limit services into policies.

The functions take what a YAML parser returns, and do no I/O. What has no counterpart here is listed and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.matching import AttributeRule, InvalidMatch, Match
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY, MAX_NAME_LENGTH

UNIT_SECONDS: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,  # 30 days, as that service has it
    "year": 31_536_000,
}
_ADDRESSES: Final = {"remote_address": "ip"}
_RULE_FIELDS: Final = {"unit", "requests_per_unit", "unlimited", "name"}
_NODE_FIELDS: Final = {"key", "value", "rate_limit", "descriptors", "shadow_mode", "detailed_metric"}
_NO_EFFECT: Final = {"detailed_metric"}
_LIMITADOR_FIELDS: Final = {"namespace", "max_value", "seconds", "name", "conditions", "variables", "id"}
_OPERAND: Final = r"(?:descriptors\[\d+\])?(?:\[['\"](?P<{0}k>[^'\"]+)['\"]\]|\.?(?P<{0}n>[A-Za-z_][A-Za-z0-9_.]*))"
_VARIABLE: Final = re.compile(_OPERAND.format("a"))
_EQUALS: Final = re.compile(rf"{_OPERAND.format('a')}\s*==\s*(?P<q>['\"])(?P<value>.*)(?P=q)")


@dataclass
class Converted:
    """
    What came of a document.

    Attributes:
        domain: The domain or namespace.
        name: The slug of the policy, and of the project whose requests without a token it applies to.
        limits: The limits, which decide as the document says, but for what *missing* lists.
        missing: One sentence for each thing that has no counterpart.
        keys: Names of attributes by key, where they differ, for the mapping file of the rate limit service.
    """

    domain: str
    name: str = field(init=False)
    limits: list[Limit] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InvalidRules if the domain makes no slug."""
        self.name = re.sub(r"[^a-z0-9-]+", "-", self.domain.lower()).strip("-")[:63]
        if not self.name:
            raise InvalidRules(
                f"domain: must have letters or digits for the name of its policy, got {self.domain!r:.80}."
            )

    def add(self, where: str, name: str, **fields: Any) -> None:
        """Add a limit under a name that no other has, or list why it cannot be."""
        if len(self.limits) >= MAX_LIMITS_PER_POLICY:
            self.missing.append(f"{where}: a policy has at most {MAX_LIMITS_PER_POLICY} limits.")
            return
        try:
            self.limits.append(Limit(name=self._free(name), algorithm="fixed_window", **fields))
        except InvalidLimit as exc:
            self.missing.append(f"{where}: {exc}")

    def attribute(self, key: str) -> str:
        """Return the name of the attribute that a key becomes, and keep it if the two differ."""
        name = re.sub(r"[^a-z0-9._-]", "-", _ADDRESSES.get(key, key).lower())
        name = name if name[:1].isalpha() else f"x-{name}"
        if name != _ADDRESSES.get(key, key):
            self.keys[key] = name
        return name

    def _free(self, name: str) -> str:
        wanted = re.sub(r"[^A-Za-z0-9._:/-]+", "-", name).strip("-._:/") or "limit"
        taken = {limit.name for limit in self.limits}
        shortened, number = wanted[:MAX_NAME_LENGTH], 1
        while shortened in taken:
            number += 1
            shortened = f"{wanted[: MAX_NAME_LENGTH - 4]}-{number}"
        return shortened


class InvalidRules(ValueError):
    """A document is not of the kind that was named."""


def from_envoy(document: object) -> Converted:
    """
    Translate a configuration of envoyproxy/ratelimit, which is one domain.

    Raises:
        InvalidRules: The document has another form.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("domain"), str):
        raise InvalidRules("domain: is required, as in the configuration of envoyproxy/ratelimit.")
    found = Converted(document["domain"])
    found.missing += [f"{name}: is not supported." for name in sorted(document.keys() - {"domain", "descriptors"})]
    _descend(found, document.get("descriptors"), ())
    return found


@dataclass(frozen=True)
class _Step:
    """One entry of the descriptor that leads to a limit. The value is None if every value is meant."""

    key: str
    value: str | None

    @property
    def shown(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"


def _descend(found: Converted, nodes: object, path: tuple[_Step, ...]) -> None:
    if nodes is None:
        return
    if not isinstance(nodes, list):
        raise InvalidRules("descriptors: must be a list.")
    for node in nodes:
        if not isinstance(node, Mapping) or not isinstance(node.get("key"), str):
            raise InvalidRules("descriptors: each must have a key.")
        value = node.get("value")
        here = (*path, _Step(node["key"], None if value in (None, "") else str(value)))
        where = " > ".join(step.shown for step in here)
        for name in sorted(node.keys() - _NODE_FIELDS - _NO_EFFECT):
            found.missing.append(f"{where}: {name} is not supported.")
        if len({step.key for step in here}) < len(here):
            found.missing.append(f"{where}: a request has one value of {here[-1].key}, so this is never met.")
            continue
        if node.get("rate_limit") is not None:
            _rule(found, where, here, node, [other for other in nodes if other is not node])
        _descend(found, node.get("descriptors"), here)


def _rule(found: Converted, where: str, path: tuple[_Step, ...], node: Mapping[str, Any], others: list[Any]) -> None:
    """Add the limit of one node."""
    rule = node["rate_limit"]
    if not isinstance(rule, Mapping):
        raise InvalidRules(f"{where}: rate_limit must be a mapping.")
    for name in sorted(rule.keys() - _RULE_FIELDS):
        found.missing.append(f"{where}: {name} is not supported.")
    general = [it for it in others if isinstance(it, Mapping) and _covers(it, path[-1])]
    if rule.get("unlimited"):
        if general:
            found.missing.append(f"{where}: unlimited has no counterpart. The limit of other values applies here too.")
        return
    seconds = UNIT_SECONDS.get(str(rule.get("unit", "")).lower())
    quota = rule.get("requests_per_unit", 0)
    if seconds is None:
        found.missing.append(f"{where}: the unit {rule.get('unit')!r} is not known.")
        return
    if any(not _is_tighter(seconds, quota, it.get("rate_limit")) for it in general):
        found.missing.append(
            f"{where}: the limit of other values of {path[-1].key} applies too, and the tighter decides."
        )
    rules: dict[str, AttributeRule] = {}
    each = []
    for step in path:
        attribute = found.attribute(step.key)
        if step.value is not None:
            rules[attribute] = _glob(step.value)
        if step.value is None or step.value.endswith("*"):
            each.append(attribute)
    try:
        match = Match(attributes=rules)
    except InvalidMatch as exc:
        found.missing.append(f"{where}: {exc}")
        return
    mode = "shadow" if node.get("shadow_mode") else "enforce"
    name = rule.get("name") or ".".join(step.key if step.value is None else step.value for step in path)
    found.add(where, str(name), quota=quota, window_seconds=seconds, match=match, partition_by=tuple(each), mode=mode)


def _covers(node: Mapping[str, Any], step: _Step) -> bool:
    """Return whether the rule of a sibling also matches the values of a step, from which this one takes precedence."""
    if node.get("key") != step.key or node.get("rate_limit") is None or step.value is None:
        return False
    value = node.get("value")
    if value in (None, ""):
        return True
    text = str(value)
    return text.endswith("*") and step.value.startswith(text[:-1]) and text != step.value


def _is_tighter(seconds: int, quota: object, other: object) -> bool:
    """Return whether a limit denies whatever another one denies that counts the same requests."""
    if not isinstance(other, Mapping) or other.get("unlimited"):
        return isinstance(other, Mapping)
    same = UNIT_SECONDS.get(str(other.get("unit", "")).lower()) == seconds
    most = other.get("requests_per_unit", 0)
    return same and isinstance(quota, int) and isinstance(most, int) and quota <= most


def _glob(value: str) -> AttributeRule:
    """Return the rule for a value, in which a star at the end stands for anything."""
    if value.endswith("*"):
        return re.sub(r"([*?[])", r"[\1]", value[:-1]) + "*"
    return _exactly(value)


def _exactly(value: str) -> AttributeRule:
    """Return the rule that only this value fits. A list of one value is never a glob."""
    return (value,) if set(value) & set("*?[") else value


def from_limitador(document: object) -> list[Converted]:
    """
    Translate the limits of Limitador, one policy for each namespace.

    Raises:
        InvalidRules: The document has another form.
    """
    rows = document.get("limits") if isinstance(document, Mapping) else document
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and "namespace" in row for row in rows):
        raise InvalidRules("limits: must be a list of limits with a namespace, as in the files of Limitador.")
    found: dict[str, Converted] = {}
    for number, row in enumerate(rows, 1):
        namespace = str(row["namespace"])
        _limitador_row(found.setdefault(namespace, Converted(namespace)), f"limit {number}", row)
    return list(found.values())


def _limitador_row(found: Converted, where: str, row: Mapping[str, Any]) -> None:
    for name in sorted(row.keys() - _LIMITADOR_FIELDS):
        found.missing.append(f"{where}: {name} is not supported.")
    each, rules, fits = [], dict[str, str](), True
    for variable in row.get("variables") or ():
        matched = _VARIABLE.fullmatch(str(variable).strip())
        if matched is None:
            found.missing.append(f"{where}: the variable {variable!r} has no counterpart, so the limit is left out.")
            fits = False
        else:
            each.append(found.attribute(matched["ak"] or matched["an"]))
    for condition in row.get("conditions") or ():
        matched = _EQUALS.fullmatch(str(condition).strip())
        if matched is None or matched["q"] in matched["value"]:
            found.missing.append(f"{where}: the condition {condition!r} has no counterpart, so the limit is left out.")
            fits = False
        else:
            value = matched["value"]
            name = found.attribute(matched["ak"] or matched["an"])
            if rules.setdefault(name, value) != value:
                found.missing.append(f"{where}: two conditions contradict each other, so the limit is left out.")
                fits = False
    if not fits:
        return
    exact = {
        name: (rule,) if isinstance(rule, str) and set(rule) & set("*?[") else rule for name, rule in rules.items()
    }
    try:
        match = Match(attributes=exact)
    except InvalidMatch as exc:
        found.missing.append(f"{where}: {exc}")
        return
    name = row.get("name") or ".".join([*each, *rules.values()]) or "all"
    found.add(
        where,
        str(name),
        quota=row.get("max_value"),
        window_seconds=row.get("seconds"),
        match=match,
        partition_by=tuple(dict.fromkeys(each)),
    )


def described(policies: Iterable[Converted]) -> Iterator[dict[str, Any]]:
    """Yield each policy in the form that REST takes."""
    for policy in policies:
        limits = [limit.to_json() for limit in policy.limits]
        yield {"slug": policy.name, "name": policy.name, "limits": limits}


__all__ = ["Converted", "InvalidRules", "described", "from_envoy", "from_limitador"]
