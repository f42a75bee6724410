"""
Decide which requests a limit applies to, by their method, path and attributes.

Labels of tokens are attributes with the prefix ``label.``. They come from the document of the token only. An attribute
of a request with such a name is never read, so that no client can choose the labels of its token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from fnmatch import translate
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Self

from enforcement.model.checks import shown
from enforcement.model.metered import FrozenMapping
from enforcement.model.sizes import (
    MAX_ATTRIBUTE_LENGTH,
    MAX_ATTRIBUTE_NAME_LENGTH,
    MAX_ATTRIBUTES,
    MAX_LABEL_LENGTH,
    MAX_LABEL_NAME_LENGTH,
    MAX_LABELS,
    MAX_MATCH_RULES,
    MAX_PARTITION_VALUE_LENGTH,
    MAX_PARTITIONS,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS_PER_RULE,
)

AttributeRule = str | tuple[str, ...]
Attributes = Mapping[str, str]

ATTRIBUTE_NAME_RULE: Final = "1 to 64 of a-z 0-9 . _ - and begin with a letter"
LABEL_PREFIX: Final = "label."
NO_LABELS: Final[FrozenMapping[str]] = FrozenMapping()
LABEL_NAME_RULE: Final = f"1 to {MAX_LABEL_NAME_LENGTH} of a-z 0-9 . _ - and begin with a letter"

_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}", re.ASCII)
# Not str.isprintable(), which differs between versions of Python, and so between a publisher and its readers.
_CONTROL: Final = frozenset(map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029)))
_METHOD: Final = re.compile(r"[A-Z]{1,16}", re.ASCII)
_WILD: Final = frozenset("*?[")
_PATH_BEGINS: Final = ("/", *_WILD)


class InvalidMatch(ValueError):
    """
    A rule that cannot be matched.

    Attributes:
        field: Name of the field that is wrong, as in JSON.
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Match:
    """
    The requests that a limit applies to. An empty match applies to every request.

    Args:
        methods: HTTP methods in capitals. The request must have one of them.
        path: A glob that the whole path must match. It begins with ``/`` or a wildcard. ``*`` matches any characters,
            also ``/``.
        attributes: Name to rule. The request must fit all rules. A rule is a string, a glob, or a tuple of strings of
            which the attribute must equal one.
        published: Whether the match is part of a published document or saved row. Version 0.2.0 accepted a path such as
            ``v1/*`` there, or an attribute that no label can have, which match no request. An enforcer must go on with
            them.
    """

    methods: tuple[str, ...] = ()
    path: str = ""
    attributes: Mapping[str, AttributeRule] = field(default_factory=dict)
    published: InitVar[bool] = False

    def __post_init__(self, published: bool) -> None:
        if len(self.methods) > MAX_MATCH_RULES or any(not _is(_METHOD, name) for name in self.methods):
            raise InvalidMatch("methods", "Must list HTTP methods in capitals.")
        if not isinstance(self.path, str) or len(self.path) > MAX_PATTERN_LENGTH:
            raise InvalidMatch("path", f"Must be a glob of at most {MAX_PATTERN_LENGTH} characters.")
        if self.path and not published and not self.path.startswith(_PATH_BEGINS):
            reason = "Must begin with / or a wildcard, because every path of a request begins with /"
            raise InvalidMatch("path", f"{reason}, got {shown(self.path)}.")
        if len(self.attributes) > MAX_MATCH_RULES:
            raise InvalidMatch("attributes", f"Must have at most {MAX_MATCH_RULES} rules, got {len(self.attributes)}.")
        for name, rule in self.attributes.items():
            if not is_attribute_name(name):
                raise InvalidMatch("attributes", f"A name must be {ATTRIBUTE_NAME_RULE}, got {shown(name)}.")
            if not published and not may_exist(name):
                raise InvalidMatch("attributes", no_label(name))
            options = rule if isinstance(rule, tuple) else (rule,)
            if not 0 < len(options) <= MAX_PATTERNS_PER_RULE or any(not _short(option) for option in options):
                raise InvalidMatch(
                    "attributes",
                    f"A rule must be a string, a glob or a list of 1 to {MAX_PATTERNS_PER_RULE} strings, each of at "
                    f"most {MAX_PATTERN_LENGTH} characters.",
                )
            if not published and is_label(name) and not all(options):
                raise InvalidMatch("attributes", f"A label is never empty, so {name} must not match an empty string.")
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __hash__(self) -> int:
        return hash((self.methods, self.path, tuple(self.attributes.items())))

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.methods, self.path, dict(self.attributes), True)

    def names(self) -> Iterator[str]:
        """Yield the names of the attributes that this looks at."""
        if self.methods:
            yield "method"
        if self.path:
            yield "path"
        yield from self.attributes

    def compile(self, partition_by: tuple[str, ...] = ()) -> Callable[[Attributes], bool] | None:
        """
        Return a function that returns whether given attributes match, or None if every request matches.

        Labels are left out. They are the same for every request of a token, see :meth:`fits`.

        Args:
            partition_by: Attributes that the request must have as well, with any value.
        """
        partition_by = without_labels(partition_by)
        rules = [(name, _tester(rule)) for name, rule in self.attributes.items() if not is_label(name)]
        if self.methods:
            rules.append(("method", frozenset(self.methods).__contains__))
        if self.path:
            rules.append(("path", _tester(self.path)))
        if not rules and not partition_by:
            return None

        def matches(attributes: Attributes) -> bool:
            for name in partition_by:
                if name not in attributes:
                    return False
            return all(name in attributes and test(attributes[name]) for name, test in rules)

        return matches

    def fits(self, labels: Attributes) -> bool:
        """Return whether the labels of a token, named as attributes, fit all rules about labels."""
        rules = [(name, rule) for name, rule in self.attributes.items() if is_label(name)]
        return all(name in labels and _tester(rule)(labels[name]) for name, rule in rules)

    def to_json(self) -> dict[str, object]:
        """Return the rules as JSON values, without those that are empty."""
        rules = {name: list(rule) if isinstance(rule, tuple) else rule for name, rule in self.attributes.items()}
        parts = {"methods": list(self.methods), "path": self.path, "attributes": rules}
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def from_json(cls, data: object, *, published: bool = False) -> Self:
        """
        Return the rules that JSON values describe.

        Args:
            published: As for the class.
        Raises:
            InvalidMatch: A field is unknown, or a rule has the wrong type.
        """
        if not isinstance(data, Mapping) or not set(data) <= {"methods", "path", "attributes"}:
            raise InvalidMatch("match", "Must be an object of methods, path and attributes.")
        methods, attributes = data.get("methods", ()), data.get("attributes", {})
        if not isinstance(methods, (list, tuple)):
            raise InvalidMatch("methods", "Must list HTTP methods in capitals.")
        if not isinstance(attributes, Mapping):
            raise InvalidMatch("attributes", "Must be an object of names and rules.")
        rules = {name: tuple(rule) if isinstance(rule, list) else rule for name, rule in attributes.items()}
        return cls(tuple(methods), data.get("path", ""), rules, published)


def is_attribute_name(name: object) -> bool:
    """Return whether limits can name an attribute so, see :data:`ATTRIBUTE_NAME_RULE`."""
    return _is(_NAME, name)


def is_label(name: str) -> bool:
    """Return whether an attribute is a label of the token."""
    return name.startswith(LABEL_PREFIX)


def may_exist(name: str) -> bool:
    """Return whether an attribute is either no label, or one that a token can have."""
    return not is_label(name) or _is_label_name(name.removeprefix(LABEL_PREFIX))


def no_label(name: str) -> str:
    """Return a sentence about the name of an attribute that cannot be a label."""
    return f"A label is label. and a name, which must be {LABEL_NAME_RULE}, got {shown(name)}."


def without_labels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of attributes that a request has, without the labels of its token."""
    return tuple(name for name in names if not is_label(name))


def check_labels(labels: object) -> FrozenMapping[str]:
    """
    Return the labels of a token as an unchangeable mapping, or raise ValueError if they break a rule.

    Raises:
        ValueError: They are not a mapping of at most 16 valid names to strings of 1 to 128 characters, without control
            characters and without a space at either end.
    """
    if not isinstance(labels, Mapping):
        raise ValueError(f"must be an object of names and strings, got {shown(labels)}")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"must be at most {MAX_LABELS}, got {len(labels)}")
    for name, value in labels.items():
        if not _is_label_name(name):
            raise ValueError(f"a name must be {LABEL_NAME_RULE}, got {shown(name)}")
        if not isinstance(value, str):
            raise ValueError(f"the value of {name} must be a string, got {shown(value)}")
        if not 0 < len(value) <= MAX_LABEL_LENGTH:
            raise ValueError(f"the value of {name} must have 1 to {MAX_LABEL_LENGTH} characters, got {len(value)}")
        if _has_control(value) or value != value.strip():
            raise ValueError(f"the value of {name} must not have control characters, or a space at either end")
    return FrozenMapping(labels)


def check_partition(values: object) -> FrozenMapping[str]:
    """
    Return values of a partition, such as ``{"label.team": "web"}``, as an unchangeable mapping in the order of names.

    Raises:
        ValueError: They are not a mapping of 1 to 4 names of attributes to strings that an attribute or label can be,
            without control characters and without a space at either end.
    """
    if not isinstance(values, Mapping) or not 0 < len(values) <= MAX_PARTITIONS:
        raise ValueError(f"must be an object of 1 to {MAX_PARTITIONS} names and values, got {shown(values)}")
    for name, value in values.items():
        if not is_attribute_name(name) or not may_exist(name):
            raise ValueError(f"an attribute must be {ATTRIBUTE_NAME_RULE}, got {shown(name)}")
        most = MAX_LABEL_LENGTH if is_label(name) else MAX_PARTITION_VALUE_LENGTH
        if not isinstance(value, str) or not 0 < len(value) <= most:
            raise ValueError(f"the value of {name} must be a string of 1 to {most} characters, got {shown(value)}")
        if _has_control(value) or value != value.strip():
            raise ValueError(f"the value of {name} must not have control characters, or a space at either end")
    return FrozenMapping(dict(sorted(values.items())))


def _is_label_name(name: object) -> bool:
    return _is(_NAME, name) and len(str(name)) <= MAX_LABEL_NAME_LENGTH


def _has_control(text: str) -> bool:
    """Return whether a text has a control character, or half of a surrogate pair."""
    return not _CONTROL.isdisjoint(text) or any("\ud800" <= character <= "\udfff" for character in text)


def check_attributes(attributes: object) -> Attributes:
    """
    Return *attributes* unchanged, or raise ValueError if they are not a small mapping of strings to strings.

    Raises:
        ValueError: They are not a mapping of strings, or are larger than :mod:`enforcement.model.sizes` allows.
    """
    if not isinstance(attributes, Mapping):
        raise ValueError(f"attributes: must be a mapping of names to strings, got {shown(attributes)}.")
    if len(attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"attributes: must have at most {MAX_ATTRIBUTES} items, got {len(attributes)}.")
    for name, value in attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            what, odd = (shown(name), value) if isinstance(name, str) else ("a name", name)
            raise ValueError(f"attributes: {what} must be a string, got {shown(odd)}.")
        if len(name) > MAX_ATTRIBUTE_NAME_LENGTH:
            raise ValueError(
                f"attributes: a name must have at most {MAX_ATTRIBUTE_NAME_LENGTH} characters, got {len(name)}."
            )
        if len(value) > MAX_ATTRIBUTE_LENGTH:
            raise ValueError(
                f"attributes: {name!r} must have at most {MAX_ATTRIBUTE_LENGTH} characters, got {len(value)}."
            )
    return attributes


def _tester(rule: AttributeRule) -> Callable[[str], bool]:
    if isinstance(rule, tuple):
        return frozenset(rule).__contains__
    if _WILD.isdisjoint(rule):
        return rule.__eq__
    found = _pattern(rule).match
    return lambda value: found(value) is not None


@lru_cache(maxsize=4_096)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PATTERN_LENGTH
