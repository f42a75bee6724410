"""
Read YAML as services do whose fields have types of their own.

Every scalar is a string, because ``value: 010``, ``value: yes`` and ``value: 22:22`` are strings to them, and numbers
to a parser that guesses. The reader of a field says what it is by :func:`integer` and :func:`boolean`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import yaml

_INTEGER: Final = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_TRUE: Final = frozenset({"true", "yes", "on", "y"})
_FALSE: Final = frozenset({"false", "no", "off", "n"})


class _Loader(yaml.SafeLoader):
    """Builds mappings, lists, strings and None, and refuses a key that a mapping has twice."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Add what a mapping merges from others, each key once, so that merges of merges do not multiply."""
        own: set[str] = set()
        for name in (_name(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            if name in own:
                problem = f"the key {name!r:.80} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            own.add(name)
        super().flatten_mapping(node)
        node.value = list({_name(key): (key, value) for key, value in node.value}.values())


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in resolvers if tag.rpartition(":")[2] in ("merge", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _name(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else str(id(key))


def documents(text: str) -> Iterator[object]:
    """
    Yield each document of a YAML stream.

    Raises:
        YAMLError: It is no YAML, has a tag, or a key twice.
        ValueError: It is nested too deeply.
    """
    try:
        yield from yaml.load_all(text, _Loader)
    except RecursionError:
        raise ValueError("must not be nested as deeply.") from None


def integer(value: object) -> object:
    """Return the integer that a scalar is, or the value itself if it is none."""
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value


def boolean(value: object) -> bool | None:
    """Return the boolean that a scalar is, False if it is missing, or None if it is none."""
    if value is None:
        return False
    word = value.lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None
