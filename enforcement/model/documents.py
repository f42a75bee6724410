"""
The documents that the control plane publishes and enforcers obey: canonical JSON out, strict reading in.

A document is data that can stop a fleet. So an unknown schema number or field, NaN, an infinity, a duplicate key, a
truth value or a fraction where a whole number belongs, too much text or too much nesting is refused as a whole, and
the reader keeps what it had. Nothing is ever read as "unlimited".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from enforcement.model.limits import MAX_NUMBER, InvalidLimit, Limit, Policy
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP

SCHEMA: Final = 1
MAX_DOCUMENT_BYTES: Final = 65_536
MAX_OVERRIDES: Final = 1_000
MAX_DEPTH: Final = 20

_PROJECT_ID: Final = re.compile(r"proj_[A-Za-z0-9]{1,35}", re.ASCII)


class InvalidDocument(ValueError):
    """A document that must not be obeyed; the text says which rule it breaks, and where."""


@dataclass(frozen=True, slots=True)
class Override:
    """Another quota, and burst, for one limit of one project or token, until its end."""

    id: str
    policy: str
    limit: str
    quota: int
    burst: int | None = None
    ends_at_us: int | None = None

    def apply(self, limit: Limit) -> Limit:
        """
        Return *limit* with this override's numbers; a burst that it leaves out stays as it is.

        So does the burst of a limit that has none: its algorithm may have changed since the override was made.
        """
        bursts = self.burst is not None and limit.algorithm == "token_bucket"
        return replace(limit, quota=self.quota, burst=self.burst if bursts else limit.burst)


@dataclass(frozen=True, slots=True)
class Project:
    """A tenant as enforcers know it; ``policy`` is an id or None, ``partition_cap`` is for each limit."""

    id: str
    slug: str
    active: bool
    policy: str | None
    overrides: tuple[Override, ...] = ()
    partition_cap: int = DEFAULT_CAP


@dataclass(frozen=True, slots=True)
class Token:
    """A credential as enforcers know it; found by its digest, and never holding the secret."""

    id: str
    project: str
    name: str
    policy: str | None
    revoked: bool
    expires_at_us: int | None
    overrides: tuple[Override, ...] = ()


def dumps(document: Mapping[str, Any]) -> str:
    """Return canonical JSON: sorted keys, no blanks, ASCII only."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> dict[str, Any]:
    """
    Read a JSON object, strictly.

    Raises:
        InvalidDocument: Not one JSON object, or it holds what JSON readers disagree about.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InvalidDocument(f"it has {len(text)} bytes, and at most {MAX_DOCUMENT_BYTES} are read")
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_constant)
    except InvalidDocument:
        raise
    except (ValueError, RecursionError) as exc:
        raise InvalidDocument(f"it is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidDocument("it is not a JSON object")
    _check_values(value, 1)
    return value


def parse_policy(text: str | bytes) -> Policy:
    """
    Read a policy's document. Raises InvalidDocument.

    ``unused_max`` tells readers by a limit's name how many of its permits leases may leave unused; see
    :func:`~enforcement.state.lease.published_bounds`. Enforcers know that by themselves.
    """
    data = _Reader(text, {"id", "slug", "name", "version", "limits"}, optional={"unused_max"})
    data.check_numbers("unused_max")
    try:
        limits = tuple(Limit.from_json(limit) for limit in data.items("limits"))
        return Policy(data.text("id"), data.text("slug"), limits, data.text("name"), data.number("version"))
    except InvalidLimit as exc:
        raise InvalidDocument(f"limit {exc}") from exc


def parse_project(text: str | bytes) -> Project:
    """Read a project's document; ``partition_cap`` may be left out. Raises InvalidDocument."""
    data = _Reader(text, {"id", "slug", "active", "policy", "overrides"}, optional={"partition_cap"})
    return Project(
        data.project_id("id"),
        data.text("slug"),
        data.truth("active"),
        data.maybe_text("policy"),
        data.overrides(),
        data.cap("partition_cap"),
    )


def parse_token(text: str | bytes) -> Token:
    """Read a token's document. Raises InvalidDocument."""
    data = _Reader(text, {"id", "project", "name", "policy", "revoked", "expires_at_us", "overrides"})
    return Token(
        id=data.text("id"),
        project=data.text("project"),
        name=data.text("name"),
        policy=data.maybe_text("policy"),
        revoked=data.truth("revoked"),
        expires_at_us=data.maybe_number("expires_at_us"),
        overrides=data.overrides(),
    )


def parse_global(text: str | bytes) -> str | None:
    """Return the id of the policy that falls on every request, or None. Raises InvalidDocument."""
    return _Reader(text, {"policy"}).maybe_text("policy")


class _Reader:
    """Hands out fields of one object by type; every field must be there but for optional ones, and no other may be."""

    def __init__(
        self,
        source: str | bytes | Mapping[str, Any],
        names: set[str],
        *,
        optional: AbstractSet[str] = frozenset(),
        nested: bool = False,
    ) -> None:
        self.data = source if isinstance(source, Mapping) else loads(source)
        if not nested:
            names = names | {"schema"}
            if self.data.get("schema") != SCHEMA or isinstance(self.data["schema"], bool):
                raise InvalidDocument(f"schema: must be {SCHEMA}, not {self.data.get('schema')!r}")
        odd = sorted((set(self.data) - optional) ^ names)
        if odd:
            raise InvalidDocument(f"{odd[0]}: {'is missing' if odd[0] in names else 'unknown field'}")

    def text(self, name: str) -> str:
        value = self.data[name]
        if not isinstance(value, str) or len(value) > 255:
            raise InvalidDocument(f"{name}: must be a text of at most 255 characters")
        return value

    def project_id(self, name: str) -> str:
        """Return the hash tag of all counters of a project: short, and no other tag looks like it."""
        value = self.text(name)
        if not _PROJECT_ID.fullmatch(value):
            raise InvalidDocument(f'{name}: must be "proj_" and 1 to 35 letters and digits')
        return value

    def cap(self, name: str) -> int:
        if name not in self.data:
            return DEFAULT_CAP
        value = self.number(name)
        if not 1 <= value <= MAX_CAP:
            raise InvalidDocument(f"{name}: must be a whole number from 1 to {MAX_CAP}")
        return value

    def check_numbers(self, name: str) -> None:
        """Refuse a field that is there and is no object of whole numbers."""
        values = self.data.get(name, {})
        if not isinstance(values, Mapping):
            raise InvalidDocument(f"{name}: must be an object")
        numbers = _Reader(values, set(values), nested=True)
        for key in values:
            numbers.number(key)

    def maybe_text(self, name: str) -> str | None:
        return None if self.data[name] is None else self.text(name)

    def number(self, name: str, least: int = 0) -> int:
        value = self.data[name]
        if type(value) is not int or not least <= value <= MAX_NUMBER:
            raise InvalidDocument(f"{name}: must be a whole number from {least} to {MAX_NUMBER}")
        return value

    def maybe_number(self, name: str, least: int = 0) -> int | None:
        return None if self.data[name] is None else self.number(name, least)

    def truth(self, name: str) -> bool:
        value = self.data[name]
        if not isinstance(value, bool):
            raise InvalidDocument(f"{name}: must be true or false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.data[name]
        if not isinstance(value, list) or len(value) > MAX_OVERRIDES:
            raise InvalidDocument(f"{name}: must be a list of at most {MAX_OVERRIDES}")
        return value

    def overrides(self) -> tuple[Override, ...]:
        return tuple(map(_override, self.items("overrides")))


def _override(item: object) -> Override:
    if not isinstance(item, Mapping):
        raise InvalidDocument("overrides: must hold objects")
    data = _Reader(item, {"id", "policy", "limit", "quota", "burst", "ends_at_us"}, nested=True)
    return Override(
        id=data.text("id"),
        policy=data.text("policy"),
        limit=data.text("limit"),
        quota=data.number("quota"),
        burst=data.maybe_number("burst", least=1),
        ends_at_us=data.maybe_number("ends_at_us"),
    )


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidDocument("a key stands in it twice")
    return found


def _constant(text: str) -> NoReturn:
    raise InvalidDocument(f"{text} is not a whole number")


def _check_values(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidDocument(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        if "\0" in value or (not value.isprintable() and any(0xD800 <= ord(c) <= 0xDFFF for c in value)):
            raise InvalidDocument("a text in it holds NUL or half of a surrogate pair")
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_values(key, depth + 1)
            _check_values(item, depth + 1)
