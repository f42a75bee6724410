"""Which requests a limit falls on: methods, a path, attributes; each given exactly, as a list or as a glob."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Self

from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH, MAX_ATTRIBUTES

AttributeRule = str | tuple[str, ...]
Attributes = Mapping[str, str]

MAX_PATTERN_LENGTH: Final = 256
MAX_RULES: Final = 16

_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}", re.ASCII)
_METHOD: Final = re.compile(r"[A-Z]{1,16}", re.ASCII)
_WILD: Final = frozenset("*?[")


class InvalidMatch(ValueError):
    """A rule that cannot be matched. ``field`` and ``reason`` as in :class:`~enforcement.model.limits.InvalidLimit`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Match:
    """
    The requests a limit falls on; an empty one is every request.

    Args:
        methods: HTTP methods in capitals, any of which will do.
        path: A glob over the whole path; ``*`` stands for any characters, ``/`` included.
        attributes: Name to rule, all of which must hold: a text, a glob, or a tuple of texts, one of which is meant.
    """

    methods: tuple[str, ...] = ()
    path: str = ""
    attributes: Mapping[str, AttributeRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.methods) > MAX_RULES or any(not _is(_METHOD, name) for name in self.methods):
            raise InvalidMatch("methods", "Must list HTTP methods in capitals.")
        if not isinstance(self.path, str) or len(self.path) > MAX_PATTERN_LENGTH:
            raise InvalidMatch("path", f"Must be a glob of at most {MAX_PATTERN_LENGTH} characters.")
        if len(self.attributes) > MAX_RULES:
            raise InvalidMatch("attributes", f"Must hold at most {MAX_RULES} rules.")
        for name, rule in self.attributes.items():
            if not _is(_NAME, name):
                raise InvalidMatch("attributes", "A name is 1 to 64 of a-z 0-9 . _ - and begins with a letter.")
            options = rule if isinstance(rule, tuple) else (rule,)
            if not 0 < len(options) <= 64 or any(not _short(option) for option in options):
                raise InvalidMatch(
                    "attributes", "A rule is a text, a glob or a list of texts, each of 256 characters at most."
                )
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    def __hash__(self) -> int:
        return hash((self.methods, self.path, tuple(self.attributes.items())))

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.methods, self.path, dict(self.attributes))

    def compile(self, partition_by: tuple[str, ...] = ()) -> Callable[[Attributes], bool] | None:
        """Return a function that tells whether a request's attributes match, or None if every request does."""
        rules = [(name, _tester(rule)) for name, rule in self.attributes.items()]
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

    def to_json(self) -> dict[str, Any]:
        """Return the rules as JSON values, empty ones left out."""
        rules = {name: list(rule) if isinstance(rule, tuple) else rule for name, rule in self.attributes.items()}
        parts = {"methods": list(self.methods), "path": self.path, "attributes": rules}
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """
        Read the rules from JSON values.

        Raises:
            InvalidMatch: An unknown field or a rule of the wrong type.
        """
        if not isinstance(data, Mapping) or not set(data) <= {"methods", "path", "attributes"}:
            raise InvalidMatch("match", "Must be an object of methods, path and attributes.")
        methods, attributes = data.get("methods", ()), data.get("attributes", {})
        if not isinstance(methods, (list, tuple)):
            raise InvalidMatch("methods", "Must list HTTP methods in capitals.")
        if not isinstance(attributes, Mapping):
            raise InvalidMatch("attributes", "Must be an object of names and rules.")
        rules = {name: tuple(rule) if isinstance(rule, list) else rule for name, rule in attributes.items()}
        return cls(tuple(methods), data.get("path", ""), rules)


def check_attributes(attributes: object) -> Attributes:
    """
    Return a request's attributes, checked.

    Raises:
        ValueError: Not a mapping of texts, or more and longer ones than :mod:`enforcement.model.sizes` allows.
    """
    if not isinstance(attributes, Mapping):
        raise ValueError("attributes: must be a mapping of names to texts.")
    if len(attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"attributes: at most {MAX_ATTRIBUTES} may be given, not {len(attributes)}.")
    for name, value in attributes.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"attributes: {name!r} must be a text.")
        if len(name) > MAX_ATTRIBUTE_NAME_LENGTH:
            raise ValueError(f"attributes: a name must have at most {MAX_ATTRIBUTE_NAME_LENGTH} characters.")
        if len(value) > MAX_ATTRIBUTE_LENGTH:
            raise ValueError(f"attributes: {name!r} must have at most {MAX_ATTRIBUTE_LENGTH} characters.")
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
