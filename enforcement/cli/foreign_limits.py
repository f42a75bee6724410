"""
Translate the rules of other rate limit services into policies.

The functions take what a YAML parser returns, and do no I/O. What has no counterpart here is listed and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from enforcement.cli.foreign_yaml import boolean, integer
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.matching import AttributeRule, InvalidMatch, Match
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY, MAX_NAME_LENGTH

MAX_DESCRIPTORS: Final = 10_000
"""Nodes of the descriptors of one domain."""
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
_DOCUMENT_FIELDS: Final = {"domain", "descriptors"}
_NODE_FIELDS: Final = {"key", "value", "rate_limit", "descriptors", "shadow_mode", "detailed_metric"}
_NO_EFFECT: Final = {"detailed_metric"}


@dataclass
class Converted:
    """
    A converted document.

    Attributes:
        domain: The domain or namespace.
        name: The slug of the policy, and of the project whose requests without a token it applies to.
        limits: The limits, which decide as the document says, but for what *missing* lists.
        missing: One sentence for each thing that has no counterpart.
        keys: Names of attributes by key, where they differ, for the mapping file of the rate limit service.
        used: Keys by the name of the attribute that they become.
    """

    domain: str
    name: str = field(init=False)
    limits: list[Limit] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)

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
        """
        Return the name of the attribute that a key becomes, and keep it if the two differ.

        Raises:
            InvalidRules: Another key has become the same attribute.
        """
        name = re.sub(r"[^a-z0-9._-]", "-", _ADDRESSES.get(key, key).lower())
        name = name if name[:1].isalpha() else f"x-{name}"
        if self.used.setdefault(name, key) != key:
            raise InvalidRules(f"{key}: would be the same attribute as {self.used[name]}. Rename one of them.")
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


def check_names(policies: Iterable[Converted]) -> None:
    """Raise InvalidRules if two domains or namespaces become a policy of the same name."""
    domains: dict[str, str] = {}
    for policy in policies:
        if policy.name in domains:
            raise InvalidRules(
                f"{policy.domain!r:.80}: would be the same policy as {domains[policy.name]!r:.80}, {policy.name}."
            )
        domains[policy.name] = policy.domain


def from_envoy(document: object) -> Converted:
    """
    Translate a configuration of envoyproxy/ratelimit, which is one domain.

    Raises:
        InvalidRules: The document has another form.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("domain"), str):
        raise InvalidRules("domain: is required, as in the configuration of envoyproxy/ratelimit.")
    converted = Converted(document["domain"])
    converted.missing += [f"{name}: is not supported." for name in sorted(map(str, document.keys() - _DOCUMENT_FIELDS))]
    nodes = _nodes(document.get("descriptors"), (), iter(range(MAX_DESCRIPTORS)))
    _descend(converted, nodes)
    _compare(converted, nodes)
    return converted


@dataclass(frozen=True)
class _Step:
    """One entry of the descriptor that leads to a limit. The value is None if every value is meant."""

    key: str
    value: str | None

    @property
    def shown(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"

    @property
    def is_wide(self) -> bool:
        """Whether it has more than one value."""
        return self.value is None or self.value.endswith("*")

    def covers(self, other: _Step) -> bool:
        """Return whether this entry also has the values of another one, which takes precedence over it."""
        if self.key != other.key or self == other or other.value is None:
            return False
        return self.value is None or (self.value.endswith("*") and other.value.startswith(self.value[:-1]))


@dataclass(frozen=True)
class _Node:
    """A node of the tree of descriptors, with the entries that lead to it."""

    path: tuple[_Step, ...]
    fields: Mapping[str, object]
    below: tuple[_Node, ...]

    @property
    def where(self) -> str:
        return " > ".join(step.shown for step in self.path)

    @property
    def rule(self) -> Mapping[str, object] | None:
        """The limit of the node, or None if it has none."""
        rule = self.fields.get("rate_limit")
        if rule is not None and not isinstance(rule, Mapping):
            raise InvalidRules(f"{self.where}: rate_limit must be a mapping.")
        return rule

    @property
    def is_shadow(self) -> bool:
        """Whether the limit of the node denies nothing."""
        return _boolean(self.where, self.fields, "shadow_mode")

    def limited(self) -> Iterator[_Node]:
        """Yield the nodes that have a limit, of this one and those below it."""
        if self.rule is not None:
            yield self
        for node in self.below:
            yield from node.limited()


def _nodes(rows: object, path: tuple[_Step, ...], left: Iterator[int]) -> tuple[_Node, ...]:
    """
    Return the nodes of a list of descriptors.

    Args:
        left: Has an item for each node that may follow. Aliases of YAML can make a short file a very large tree.
    """
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise InvalidRules("descriptors: must be a list.")
    found: dict[_Step, _Node] = {}
    for row in rows:
        if next(left, None) is None:
            raise InvalidRules(f"descriptors: must be at most {MAX_DESCRIPTORS}.")
        if not isinstance(row, Mapping) or not isinstance(row.get("key"), str) or not row["key"]:
            raise InvalidRules("descriptors: each must have a key.")
        step = _Step(row["key"], None if row.get("value") in (None, "") else str(row["value"]))
        here = (*path, step)
        if step in found:
            raise InvalidRules(f"{found[step].where}: is there twice.")
        repeated = any(step.key == other.key for other in path)
        found[step] = _Node(here, row, () if repeated else _nodes(row.get("descriptors"), here, left))
    return tuple(found.values())


def _descend(found: Converted, nodes: Iterable[_Node]) -> None:
    """Add the limits of a tree of descriptors, and list what has no counterpart."""
    for node in nodes:
        for name in sorted(map(str, node.fields.keys() - _NODE_FIELDS - _NO_EFFECT)):
            found.missing.append(f"{node.where}: {name} is not supported.")
        if len({step.key for step in node.path}) < len(node.path):
            found.missing.append(f"{node.where}: a request has one value of {node.path[-1].key}, so this is never met.")
        elif node.rule is not None:
            _add_rule(found, node, node.rule)
        _descend(found, node.below)


def _add_rule(found: Converted, node: _Node, rule: Mapping[str, Any]) -> None:
    """Add the limit of one node."""
    for name in sorted(map(str, rule.keys() - _RULE_FIELDS)):
        found.missing.append(f"{node.where}: {name} is not supported.")
    if _is_unlimited(node):
        return
    seconds = _seconds(node)
    if seconds is None:
        found.missing.append(f"{node.where}: the unit {rule.get('unit')!r} is not known.")
        return
    rules: dict[str, AttributeRule] = {}
    each = []
    for step in node.path:
        attribute = found.attribute(step.key)
        if step.value is not None:
            rules[attribute] = _glob(step.value)
            if attribute == "path" and set(step.value) & set("?%"):
                found.missing.append(f"{node.where}: paths are matched without their query, and decoded.")
        if step.is_wide:
            each.append(attribute)
    try:
        match = Match(attributes=rules)
    except InvalidMatch as exc:
        found.missing.append(f"{node.where}: {exc}")
        return
    name = rule.get("name") or ".".join(step.key if step.value is None else step.value for step in node.path)
    mode = "shadow" if node.is_shadow else "enforce"
    counted = {"quota": _quota(node), "window_seconds": seconds, "partition_by": tuple(each)}
    found.add(node.where, str(name), match=match, mode=mode, **counted)


def _compare(found: Converted, nodes: tuple[_Node, ...], above: tuple[_Node, ...] = ()) -> None:
    """
    List where the rules of a value and those of other values of its key, or of fewer entries, both apply here.

    The other service takes the rules of the value, and of them alone. That is the same if they are at least as tight.

    Args:
        above: Those that lead to the nodes and have a limit that denies.
    """
    wide = [node for node in nodes if node.path[-1].is_wide]
    for node in nodes:
        for fewer in above if node.rule is not None else ():
            found.missing += _also(node, fewer, f"the limit of {fewer.where}")
        depth = len(node.path)
        own = {it.path[depth:]: it for it in node.limited()} if wide else {}
        for general in (it for it in wide if it.path[-1].covers(node.path[-1])):
            for other in general.limited():
                if _denies(other):
                    found.missing += _difference(node, other, own.get(other.path[depth:]))
        _compare(found, node.below, (*above, node) if node.rule is not None and _denies(node) else above)


def _denies(node: _Node) -> bool:
    """Return whether the limit of a node can deny a request."""
    return not node.is_shadow and not _is_unlimited(node) and _seconds(node) is not None


def _difference(node: _Node, general: _Node, own: _Node | None) -> Iterator[str]:
    """Yield a sentence if a limit that other values have as well changes what is decided for a value."""
    key = node.path[-1].key
    if own is None:
        where = " > ".join(step.shown for step in (*node.path, *general.path[len(node.path) :]))
        yield f"{where}: has no limit there. The limit of other values of {key} applies here too."
    else:
        yield from _also(own, general, f"the limit of other values of {key}")


def _also(own: _Node, general: _Node, name: str) -> Iterator[str]:
    """Yield a sentence if a limit that applies beside that of a node denies what the other service admits."""
    if _is_unlimited(own):
        yield f"{own.where}: unlimited has no counterpart, and {name} applies here too."
    elif not _is_tighter(own, general):
        yield f"{own.where}: {name} applies too, and the tighter decides."


def _is_tighter(own: _Node, general: _Node) -> bool:
    """Return whether a limit denies whatever another one denies that counts the same requests."""
    quota, most, seconds, longest = _quota(own), _quota(general), _seconds(own), _seconds(general)
    if own.is_shadow or not (isinstance(quota, int) and isinstance(most, int) and seconds and longest):
        return False
    # Windows begin at multiples of their length. One that is no multiple of the other lies across two of them.
    if seconds % longest == 0:
        return quota <= most
    return longest % seconds == 0 and quota * (longest // seconds) <= most


def _is_unlimited(node: _Node) -> bool:
    return _boolean(node.where, node.rule or {}, "unlimited")


def _quota(node: _Node) -> object:
    return integer((node.rule or {}).get("requests_per_unit", 0))


def _seconds(node: _Node) -> int | None:
    """Return the length of the window of a limit, or None if its unit is not known."""
    return UNIT_SECONDS.get(str((node.rule or {}).get("unit", "")).lower())


def _boolean(where: str, fields: Mapping[str, object], name: str) -> bool:
    value = boolean(fields.get(name))
    if value is None:
        raise InvalidRules(f"{where}: {name} must be true or false.")
    return value


def _glob(value: str) -> AttributeRule:
    """Return the rule for a value, in which a star at the end stands for anything."""
    if value.endswith("*"):
        return re.sub(r"([*?[])", r"[\1]", value[:-1]) + "*"
    return exactly(value)


def exactly(value: str) -> AttributeRule:
    """Return the rule that only this value fits. A list of one value is never a glob."""
    return (value,) if set(value) & set("*?[") else value


def described(policies: Iterable[Converted]) -> Iterator[dict[str, object]]:
    """Yield each policy in the form that REST takes."""
    for policy in policies:
        limits = [limit.to_json() for limit in policy.limits]
        yield {"slug": policy.name, "name": policy.name, "limits": limits}
