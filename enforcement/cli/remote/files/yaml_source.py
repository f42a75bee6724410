"""
Read a YAML file so that each error names a line.

A plain scalar is null, true, false, an integer or a string, as in JSON. ``no``, ``22:22`` and ``2026-12-31`` are
strings, which older rules of YAML turn into other values. Anchors, aliases and tags are refused, since a few lines of
them can stand for billions of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from enforcement.policy_files.policy_file import PolicyFile, from_source
from enforcement.policy_files.source import MAX_BYTES, FileSource, InvalidFile, Path

MAX_DEPTH: Final = 12
_TAG: Final = "tag:yaml.org,2002:"
_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS: Final = dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_SURROGATE: Final = re.compile("[\\ud800-\\udfff]")
# The parser of libyaml takes a twentieth of the time. The packages of PyYAML have it.
_FAST: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(name: str, text: str) -> FileSource:
    """
    Return what a YAML file has.

    Raises:
        InvalidFile: It is no YAML, is nested too deeply, or has an anchor, an alias, a tag, a key that is no string, or
            a key twice.
    """
    try:
        return _Composer(name).file(yaml.parse(text, Loader=_FAST))
    except yaml.YAMLError:
        pass  # the slow parser says in better words what is wrong
    try:
        return _Composer(name).file(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise InvalidFile(name, mark.line + 1 if mark else 1, (), _sentence(exc.problem or str(exc))) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise InvalidFile(name, line, (), f"Must not contain the character U+{exc.character:04X}.") from None


def _sentence(problem: str) -> str:
    if "'\\t'" in problem:
        return "Must be YAML, in which a tab cannot indent a line. Use spaces."
    return problem if problem.endswith(".") else f"Must be YAML: {problem}."


class _Composer:
    """Makes values of the events of a parser, and refuses what is more than it looks like."""

    def __init__(self, name: str) -> None:
        self._source = FileSource(name)

    def file(self, events: Iterator[yaml.Event]) -> FileSource:
        """Return the file. Raises InvalidFile, and yaml.YAMLError."""
        next(events)  # the stream begins
        if isinstance(next(events), yaml.DocumentStartEvent):
            self._source.values = self._value(events, next(events), ())
            next(events)  # the document ends
            after = next(events)
            if not isinstance(after, yaml.StreamEndEvent):
                raise self._wrong(after, "Must be one document, but another one begins here.")
        return self._source

    def _value(self, events: Iterator[Any], event: Any, path: Path) -> Any:
        """Return the value that begins with an event, and note the line of each value in it."""
        self._source.lines[path] = event.start_mark.line + 1
        self._check(event)
        if len(path) > MAX_DEPTH:
            raise self._wrong(event, f"Must be nested at most {MAX_DEPTH} levels deep.", path)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, path)
        values: list[object] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            values.append(self._value(events, event, (*path, len(values))))
        return values

    def _mapping(self, events: Iterator[Any], path: Path) -> dict[str, Any]:
        values: dict[str, object] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key, line = self._key(event, path), event.start_mark.line + 1
            if key in values:
                raise self._wrong(event, "Must be given once.", (*path, key))
            values[key] = self._value(events, next(events), (*path, key))
            # An error names the line of the key, which may be far above that of a long value.
            self._source.lines[(*path, key)] = line
        return values

    def _key(self, event: yaml.Event, path: Path) -> str:
        self._check(event)
        key = _scalar(event) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(key, str):
            text = repr(event.value) if isinstance(event, yaml.ScalarEvent) else "a list or a mapping"
            raise self._wrong(event, f"A key must be a string, got {text:.40}.", path)
        return key

    def _check(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise self._wrong(event, "Must have no anchor and no alias. Write the value where it is needed.")
        if event.tag:
            raise self._wrong(event, f"Must have no tag, got {event.tag!r:.40}.")

    def _wrong(self, event: Any, reason: str, path: Path = ()) -> InvalidFile:
        return InvalidFile(self._source.name, event.start_mark.line + 1, path, reason)


def _scalar(event: yaml.ScalarEvent) -> object:
    text: str = event.value
    if not event.implicit[0]:  # it is in quotes
        return _joined(text) if _SURROGATE.search(text) else text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    return int(text) if _INTEGER.fullmatch(text) else text


def _joined(text: str) -> str:
    """Return a string in which each character that JSON writes as two escapes is one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


class _Dumper(yaml.SafeDumper):
    """Writes lists indented below their key, and never an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> Any:
    """Return the node of a string, whose lines stand as they are if nothing at their ends could get lost."""
    lines = text.split("\n")
    plain = lines[0] and all(line == line.strip() for line in lines)
    style = None if len(lines) == 1 else "|" if plain else '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _string)
# Objects of the answers of a control plane are dicts of a class of their own.
_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)


def to_yaml(file: PolicyFile, schema: str = "") -> str:
    """
    Return the canonical text of a file. Strings that some reader takes for another value are in quotes.

    Args:
        schema: The address of its schema, in a comment for editors.
    """
    head = f"# yaml-language-server: $schema={schema}\n" if schema else ""
    return head + str(yaml.dump(file.as_values(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def parse(name: str, text: str) -> PolicyFile:
    """
    Return what the text of a policy file says.

    Args:
        name: The name of the file, for errors.
    Raises:
        InvalidFile: It is no YAML that such a file may be.
        InvalidFiles: It breaks rules, each of which is named with its line.
    """
    return from_source(read_yaml(name, text))


def read_file(path: str) -> PolicyFile:
    """
    Return what a policy file on the disk says.

    Raises:
        OSError: It cannot be read.
        InvalidFile, InvalidFiles: It breaks rules.
    """
    with open(path, "rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise InvalidFile(path, 1, (), f"Must have at most {MAX_BYTES:,} bytes.")
    try:
        text = raw.decode("utf-8-sig")  # editors of some systems begin a file with a byte order mark
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise InvalidFile(path, line, (), f"Must be UTF-8, got the byte 0x{raw[exc.start]:02X}.") from None
    return parse(path, text)
