"""
The OpenAPI document that is checked in, and the changes of it that would break a client.

``python -m tests.openapi`` fails if the views and ``tests/openapi.json`` differ, and says how. With ``--write`` it
writes the document again. It refuses a change that breaks clients, unless ``tests/openapi_breaking.txt`` names it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.repository import ROOT

DOCUMENT = ROOT / "tests/openapi.json"
ALLOWED = ROOT / "tests/openapi_breaking.txt"
REQUEST, RESPONSE = "request", "response"
SHOWN = 40
# What a schema allows at most and at least. A request may not be narrowed by them.
UPPER, LOWER = ("maximum", "maxLength", "maxItems", "maxProperties"), ("minimum", "minLength", "minItems")

Json = Mapping[str, Any]


def generated() -> dict[str, Any]:
    """Return the document that the views describe now."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.settings import spectacular_settings

    from controlplane.web.restkit.schema import DESCRIPTION

    with_description = {"DESCRIPTION": DESCRIPTION}
    spectacular_settings.apply_patches(with_description)
    try:
        return json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))
    finally:
        spectacular_settings.clear_patches()


def as_text(document: Json) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def breaking(old: Json, new: Json) -> Iterator[str]:
    """Yield each change by which a client of the *old* document may fail, as a line that names the place."""
    for path, methods in old["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            changed = new["paths"].get(path, {}).get(method)
            if changed is None:
                yield f"{name}: was removed"
            else:
                yield from Comparison(old, new).operation(name, operation, changed)


class Comparison:
    """Compares two operations, and the schemas that they refer to in their documents."""

    def __init__(self, old: Json, new: Json) -> None:
        self.old, self.new = old, new
        self._seen: set[tuple[str, str, str]] = set()

    def operation(self, name: str, old: Json, new: Json) -> Iterator[str]:
        yield from self._parameters(name, old, new)
        before, after = _body(old.get("requestBody")), _body(new.get("requestBody"))
        if before is not None and after is not None:
            yield from self.schema(f"{name} body", before, after, REQUEST)
        elif (before is None) != (after is None):
            yield f"{name} body: was {'added' if before is None else 'removed'}"
        for status, response in old["responses"].items():
            place = f"{name} {status}"
            if status not in new["responses"]:
                yield f"{place}: was removed"
            elif (found := _body(response)) is not None:
                yield from self.schema(place, found, _body(new["responses"][status]) or {}, RESPONSE)

    def _parameters(self, name: str, old: Json, new: Json) -> Iterator[str]:
        before, after = _by_name(old), _by_name(new)
        for key in before.keys() - after.keys():
            yield f"{name} {' '.join(key)}: was removed"
        for key, parameter in after.items():
            place = f"{name} {' '.join(key)}"
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"{place}: became required"
            if key in before:
                yield from self.schema(place, before[key].get("schema", {}), parameter.get("schema", {}), REQUEST)

    def schema(self, place: str, old: Json, new: Json, direction: str) -> Iterator[str]:
        """Yield what a client that knows the *old* schema may not send any more, or not expect."""
        key = (json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True), direction)
        if key in self._seen:
            return
        self._seen.add(key)
        old, new = _resolved(old, self.old), _resolved(new, self.new)
        yield from _values(place, old, new, direction)
        yield from _bounds(place, old, new, direction)
        yield from self._properties(place, old, new, direction)
        if "items" in old and "items" in new:
            yield from self.schema(f"{place}[]", old["items"], new["items"], direction)

    def _properties(self, place: str, old: Json, new: Json, direction: str) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name in before.keys() - after.keys():
            yield f"{place}.{name}: was removed"
        was, becomes = set(old.get("required", ())), set(new.get("required", ()))
        if direction == REQUEST:
            yield from (f"{place}.{name}: became required" for name in becomes - was)
        else:
            yield from (f"{place}.{name}: may be missing" for name in (was - becomes) & after.keys())
        for name in before.keys() & after.keys():
            yield from self.schema(f"{place}.{name}", before[name], after[name], direction)


def _values(place: str, old: Json, new: Json, direction: str) -> Iterator[str]:
    """Yield types and values that a request may not have any more, or that a response did not have."""
    for word, before, after in (("type", _types(old), _types(new)), ("value", _enum(old), _enum(new))):
        lost = before - after if direction == REQUEST else after - before
        if before and after and lost and not (word == "value" and direction == RESPONSE):
            yield f"{place}: {word} {', '.join(sorted(map(str, lost)))} {_verb(direction)}"
    if direction == REQUEST and _enum(new) and not _enum(old):
        yield f"{place}: has a list of values now"


def _verb(direction: str) -> str:
    return "is not allowed any more" if direction == REQUEST else "is new"


def _bounds(place: str, old: Json, new: Json, direction: str) -> Iterator[str]:
    if direction != REQUEST:
        return
    for names, sign in ((UPPER, 1), (LOWER, -1)):
        for name in names:
            if name in new and sign * new[name] < sign * old.get(name, sign * float("inf")):
                yield f"{place}: {name} became {new[name]}"
    if new.get("pattern") and new["pattern"] != old.get("pattern"):
        yield f"{place}: pattern became {new['pattern']}"


def _types(schema: Json) -> set[str]:
    found = schema.get("type", [])
    return {found} if isinstance(found, str) else set(found)


def _enum(schema: Json) -> set[Any]:
    return {json.dumps(value) for value in schema.get("enum", ())}


def _resolved(schema: Json, document: Json) -> Json:
    """Return a schema with its references, and with the parts that it is made of, as far as they have properties."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    parts = [one for word in ("allOf", "anyOf", "oneOf") for one in schema.get(word, ())]
    if not parts:
        return schema
    first = _resolved(parts[0], document)  # the first is the usual one
    return {**first, **{name: value for name, value in schema.items() if name not in ("allOf", "anyOf", "oneOf")}}


def _body(holder: Json | None) -> Json | None:
    """Return the schema of a body in its first media type, or None if there is none."""
    content = (holder or {}).get("content", {})
    return next((media.get("schema", {}) for media in content.values()), None)


def _by_name(operation: Json) -> dict[tuple[str, str], Json]:
    return {(one["in"], one["name"]): one for one in operation.get("parameters", ())}


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield the place of each value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from differences(old.get(name), new.get(name), f"{place}/{name}")
    elif old != new:
        yield place


def allowed(path: Path = ALLOWED) -> set[str]:
    """Return the breaking changes that are named as meant."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line for line in lines if line and not line.startswith("#")}


def main(arguments: list[str]) -> int:
    old, new = json.loads(DOCUMENT.read_text()) if DOCUMENT.exists() else None, generated()
    refused = [line for line in breaking(old, new) if line not in allowed()] if old else []
    for line in refused[:SHOWN]:
        print(f"breaks clients: {line}")
    if refused:
        print(f"If that is meant, name each of these {len(refused)} lines in {ALLOWED.relative_to(ROOT)}.")
        return 1
    if "--write" in arguments:
        DOCUMENT.write_text(as_text(new), encoding="utf-8")
        return 0
    changed = list(differences(old, new))
    for line in changed[:SHOWN]:
        print(f"differs: {line}")
    if changed:
        print(f"{len(changed)} places of {DOCUMENT.relative_to(ROOT)} differ. Run: python -m tests.openapi --write")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
