"""The JSON Schema of policy files: it refuses what `validate` refuses, apart from rules that no schema can say."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs

from enforcement.policy_files.policy_file import from_source
from enforcement.policy_files.schema import schema
from enforcement.policy_files.source import FileSource, InvalidFiles

VALID = jsonschema_rs.Draft202012Validator(schema()).is_valid
MATCHED = {"methods": ["GET"], "path": "/v1/*", "attributes": {"model": "gpt-*", "tier": ["a", "b"]}}
CHARGE_AS = {"charge_as": "gpt-4"}
LIMITS: list[dict[str, Any]] = [
    {"name": "minute", "quota": 5, "window_seconds": 60, "partition_by": ["ip"], "match": MATCHED},
    {"name": "month", "quota": 5, "calendar": "month", "time_zone": "Europe/Berlin", "anchor": 5, "rollover": 7},
    {"name": "bucket", "algorithm": "token_bucket", "quota": 5, "window_seconds": 60, "burst": 9},
    {"name": "tokens", "algorithm": "sliding_window", "quota": 5, "window_seconds": 60, "unit": "tokens"},
    {"name": "money", "quota": 5, "calendar": "day", "anchor": "08:00", "unit": "micros", "unpriced": CHARGE_AS},
    {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60, "charge_on": ["2xx"]},
]
METERING = {"estimate": "bound", "default_cap": 5, "part_tokens": {"image": 3}, "on_disconnect": "drain",
            "lost_after": 0}  # fmt: skip
OVERRIDE = {"limit": "free/bucket", "quota": 3, "burst": 4, "reason": "trial", "ends_at": "2099-01-01T00:00:00Z"}
FILE: dict[str, Any] = {
    "apiVersion": "sluicegate/v1",
    "project": {"slug": "chat", "name": "Chat", "policy": "free", "active": False, "partition_cap": 5},
    "policies": [{"slug": "free", "description": "x", "metering": METERING, "limits": LIMITS}],
    "overrides": [OVERRIDE],
    "token_overrides": [{"token": "tok_1", "limit": "free/minute", "quota": 3, "reason": "trial"}],
}
VALUES = (None, True, 0, -1, 31, 2**60, "", " ", "x", "month", "lifetime", "token_bucket", "leased", "tokens", "08:00")
VALUES = (*VALUES, "a" * 5_000, "Must\u202e", "x/*", [], ["x", "x"], [1], {}, {"x": 1})
# Other rules need more than a value and its neighbours.
ONLY_VALIDATE = re.compile(r"printable characters only|IANA name|given once|RFC 3339|Must be a limit of the policy")


def reason_of(values: Any) -> str:
    """Return why `validate` refuses values, or "" if it accepts them."""
    try:
        from_source(FileSource("f.yaml", values))
    except InvalidFiles as exc:
        return str(exc)
    return ""


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each value in a value, but not its own."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in children:
        yield (*path, step)
        yield from paths(child, (*path, step))


def variants() -> Iterator[Any]:
    """Yield the file with each value in turn replaced, deleted, or with a neighbour that is unknown."""
    for path in paths(FILE):
        for value in VALUES:
            changed = copy.deepcopy(FILE)
            _parent(changed, path)[path[-1]] = value
            yield changed
        for change in ("deleted", "joined"):
            changed = copy.deepcopy(FILE)
            parent = _parent(changed, path)
            if change == "deleted":
                del parent[path[-1]]
            elif isinstance(parent, dict):
                parent["unknown"] = 1
            yield changed


@cache
def judged() -> list[tuple[Any, str]]:
    """Return each variant, with why `validate` refuses it."""
    return [(values, reason_of(values)) for values in variants()]


def _parent(values: Any, path: tuple[str | int, ...]) -> Any:
    for step in path[:-1]:
        values = values[step]
    return values


def test_the_schema_refuses_what_validate_refuses() -> None:
    """And nothing else, so that an editor and a pipeline agree."""
    differences, refused = [], 0
    for values, reason in judged():
        refused += bool(reason)
        if VALID(values) == bool(reason) and not ONLY_VALIDATE.search(reason):
            differences.append((reason, values))

    assert VALID(FILE)
    assert refused > 500
    assert differences == []


def test_the_rules_that_only_validate_has() -> None:
    """The page says so. A schema that can say one of them should."""
    said = {found[0] for _, reason in judged() if (found := ONLY_VALIDATE.search(reason))}

    assert len(said) == ONLY_VALIDATE.pattern.count("|") + 1
