"""
Read a YAML file so that each error names a line.

A plain scalar is null, true, false, an integer or a string, as in JSON. ``no``, ``22:22`` and ``2026-12-31`` are
strings, which older rules of YAML turn into other values. Anchors, aliases and tags are refused, since a few lines of
them can stand for billions of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Path = tuple[str | int, ...]

MAX_BYTES: Final = 1_048_576
MAX_DEPTH: Final = 12
_TAG: Final = "tag:yaml.org,2002:"
_RULES: Final = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})\Z"), list("-+0123456789")),
)


class InvalidFile(ValueError):
    """
    A file that breaks a rule.

    Attributes:
        file: Its name.
        line: The line with the error, from 1.
        field: The field that is wrong, such as ``policies[0].limits[1].quota``. Empty for the whole file.
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, file: str, line: int, field: str, reason: str) -> None:
        super().__init__(f"{file}:{line}: {field}: {reason}" if field else f"{file}:{line}: {reason}")
        self.file, self.line, self.field, self.reason = file, line, field, reason


class _LinedLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Composes nodes, and refuses those that are more than what they look like."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise yaml.composer.ComposerError(None, None, "Must have no anchor and no alias.", event.start_mark)
        if event.tag:
            raise yaml.composer.ComposerError(None, None, f"Must have no tag, got {event.tag!r:.40}.", event.start_mark)
        return super().compose_node(parent, index)


_LinedLoader.yaml_implicit_resolvers = {}
for _name, _rule, _first in _RULES:
    _LinedLoader.add_implicit_resolver(_TAG + _name, _rule, _first)


@dataclass(slots=True)
class YamlFile:
    """
    The values of a file, and where they are.

    Attributes:
        name: The name of the file.
        values: What the file has, as JSON values.
        lines: The line of each value by its path.
    """

    name: str
    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)

    def error(self, path: Path, reason: str) -> InvalidFile:
        """Return the error of the value at a path, or of the nearest value above it that is in the file."""
        found = path
        while found not in self.lines and found:
            found = found[:-1]
        return InvalidFile(self.name, self.lines.get(found, 1), shown_path(path), reason)


def shown_path(path: Path) -> str:
    """Return a path as a person writes it, such as ``policies[0].slug``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def read_yaml(name: str, text: str) -> YamlFile:
    """
    Return what a YAML file has.

    Raises:
        InvalidFile: It is no YAML, is nested too deeply, or has an anchor, an alias, a tag, a key that is no string, or
            a key twice.
    """
    source = YamlFile(name)
    try:
        root = yaml.compose(text, _LinedLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise InvalidFile(name, mark.line + 1 if mark else 1, "", _sentence(exc.problem or str(exc))) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise InvalidFile(name, line, "", f"Must not contain the character U+{exc.character:04X}.") from None
    except RecursionError:
        raise InvalidFile(name, 1, "", f"Must be nested at most {MAX_DEPTH} levels deep.") from None
    if root is not None:
        source.values = _value(source, root, ())
    return source


def _sentence(problem: str) -> str:
    return problem if problem.endswith(".") else f"Must be YAML: {problem}."


def _value(source: YamlFile, node: Any, path: Path) -> Any:
    """Return the value of a node, and note the line of each value in it."""
    source.lines[path] = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:
        raise source.error(path, f"Must be nested at most {MAX_DEPTH} levels deep.")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(source, child, (*path, index)) for index, child in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
            text = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise InvalidFile(source.name, line, shown_path(path), f"A key must be a string, got {text:.40}.")
        if key.value in values:
            raise InvalidFile(source.name, line, shown_path((*path, key.value)), "Must be given once.")
        values[key.value] = _value(source, child, (*path, key.value))
        # An error names the line of the key, which may be far above that of a long value.
        source.lines[(*path, key.value)] = line
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return node.value.lower() == "true"
        case "int":
            return int(node.value)
    return node.value


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Writes lists indented below their key, and never an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> Any:
    """Return the node of a string, whose lines stand as they are if nothing at their ends could get lost."""
    lines = text.split("\n")
    plain = lines[0] and all(line == line.strip() for line in lines)
    style = None if len(lines) == 1 else "|" if plain else '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _string)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return values as YAML in their order. Strings that some reader takes for another value are in quotes."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


__all__ = ["MAX_BYTES", "InvalidFile", "Path", "YamlFile", "dump_yaml", "read_yaml", "shown_path"]
