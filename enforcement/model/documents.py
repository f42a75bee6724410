"""
Read the documents that the control plane publishes and enforcers obey.

A wrong document can stop a fleet. So a document is refused as a whole if it has an unknown schema number or field, a
boolean or a fraction in place of an integer, or anything that :mod:`~enforcement.model.strict_json` refuses. The
reader then keeps the version that it had. No mistake in a document is ever read as "unlimited".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.limits import InvalidLimit, Limit
from enforcement.model.matching import NO_LABELS, Attributes, check_labels, check_partition
from enforcement.model.metered import DEFAULT_METERING, FrozenMapping, InvalidMetering, Metering
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP
from enforcement.model.sizes import (
    MAX_DOCUMENT_BYTES,
    MAX_ITEMS_PER_LIST,
    MAX_LIMITS_PER_POLICY,
    MAX_NUMBER,
    MAX_STRING_LENGTH,
)
from enforcement.model.strict_json import InvalidJSON, check_strings, loads_object

SCHEMA: Final = 1

MAX_EPOCH: Final = 999_999

_PROJECT_ID: Final = re.compile(r"proj_[A-Za-z0-9]{1,35}", re.ASCII)
_EPOCH: Final = re.compile(r"[^.]+\.([1-9][0-9]{0,5})", re.ASCII)


class InvalidDocument(ValueError):
    """A document that must not be obeyed. The message names the field and the rule that it breaks."""


class StateName(NamedTuple):
    """
    The name of a published state. Names are compared by the epoch first.

    A new epoch begins on purpose, after a restore or a move of the control plane's data. It is a part of the store's
    identity, ``ID.EPOCH``, because release 0.2 refuses unknown fields in documents, but reads any identity and loads
    everything when it changes. An identity without that part has epoch 0.
    """

    epoch: int
    revision: int

    def __str__(self) -> str:
        return f"revision {self.revision} of epoch {self.epoch}" if self.epoch else f"revision {self.revision}"


def epoch_of(store_id: str) -> int:
    """Return the epoch in the identity of a store."""
    matched = _EPOCH.fullmatch(store_id)
    return int(matched[1]) if matched else 0


def with_epoch(store_id: str, epoch: int) -> str:
    """Return an identity with this epoch. *store_id* contains no dot."""
    return f"{store_id}.{epoch}" if epoch else store_id


def parse_revision(text: str) -> int:
    """Return the number of a revision from its text, or raise InvalidDocument."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= MAX_NUMBER):
        raise InvalidDocument(f"revision: must be an integer from 1 to {MAX_NUMBER}, got {shown(text)}")
    return int(text)


def parse_identity(text: str) -> str:
    """Return *text* if it can be the identity of a store, or raise InvalidDocument."""
    if not (0 < len(text) <= 64 and text.isascii() and text.isprintable()):
        raise InvalidDocument(f"store_id: must be 1 to 64 printable ASCII characters, got {shown(text)}")
    return text


@dataclass(frozen=True, slots=True)
class Policy:
    """A named list of limits, attached to tokens, to projects, or to all requests."""

    id: str
    slug: str
    limits: tuple[Limit, ...]
    name: str = ""
    version: int = 1
    metering: Metering = DEFAULT_METERING

    def __post_init__(self) -> None:
        if len(self.limits) > MAX_LIMITS_PER_POLICY:
            raise InvalidLimit("limits", f"Must be at most {MAX_LIMITS_PER_POLICY}, got {len(self.limits)}.")
        names = [limit.name for limit in self.limits]
        if len(set(names)) < len(names):
            raise InvalidLimit("limits", "Each limit of a policy must have a name of its own.")


@dataclass(frozen=True, slots=True)
class OverrideDocument:
    """
    Another quota for one limit of one project or token.

    Attributes:
        id: Its identity.
        policy: Id of the limit's policy.
        limit: Name of the limit.
        quota: The quota in place of the limit's own.
        burst: The burst in place of the limit's own. None: unchanged.
        ends_at_us: When it ends, microseconds since the epoch. None: it does not end.
        partition: Values of what the limit is partitioned by, such as ``{"label.team": "web"}``. It is for counters of
            these values only. Empty: for all. An older enforcer refuses a document with such an override.
    """

    id: str
    policy: str
    limit: str
    quota: int
    burst: int | None = None
    ends_at_us: int | None = None
    partition: FrozenMapping[str] = NO_LABELS

    def is_for(self, values: Attributes) -> bool:
        """Return whether it is for the counter of these values, which are named as attributes."""
        return all(values.get(name) == value for name, value in self.partition.items())

    def apply(self, limit: Limit) -> Limit:
        """
        Return a copy of *limit* with the quota and the burst of this override.

        Its burst changes only a ``token_bucket``, because the limit may have had another algorithm when the override
        was made.
        """
        bursts = self.burst is not None and limit.algorithm == "token_bucket"
        burst = self.burst if bursts else limit.burst
        return replace(limit, quota=self.quota, burst=burst, published=True)


@dataclass(frozen=True, slots=True)
class ProjectDocument:
    """
    The document of a project.

    Attributes:
        policy: Id of its policy. None: it has none.
        overrides: Other quotas for limits of its policies.
        partition_cap: How many values of its attributes may have a counter of their own, for each limit.
        anonymous_policy: Id of the policy of requests without a token. None: such requests are refused.
    """

    id: str
    slug: str
    active: bool
    policy: str | None
    overrides: tuple[OverrideDocument, ...] = ()
    partition_cap: int = DEFAULT_CAP
    anonymous_policy: str | None = None


@dataclass(frozen=True, slots=True)
class TokenDocument:
    """
    The document of a token. Enforcers find it by the digest of the secret, which it does not contain.

    Attributes:
        project: Id of its project.
        policy: Id of its policy. None: it has none.
        expires_at_us: When it expires, microseconds since the epoch. None: never.
        overrides: Other quotas for limits that apply to it.
        labels: Its labels by name, such as ``{"team": "red"}``.
        suspended: Whether an operator has suspended it for now. An older enforcer refuses such a document, and with it
            the token.
        suspended_until_us: When its suspension ends, microseconds since the epoch. None: it has no end.
    """

    id: str
    project: str
    name: str
    policy: str | None
    revoked: bool
    expires_at_us: int | None
    overrides: tuple[OverrideDocument, ...] = ()
    labels: FrozenMapping[str] = NO_LABELS
    suspended: bool = False
    suspended_until_us: int | None = None


def loads(text: str | bytes) -> dict[str, Any]:
    """
    Return the fields of a document from its JSON text.

    Raises:
        InvalidDocument: The text is not one JSON object, or has something that JSON readers disagree about.
    """
    try:
        value = loads_object(text, max_length=MAX_DOCUMENT_BYTES)
        check_strings(value)
    except InvalidJSON as exc:
        raise InvalidDocument(str(exc)) from exc
    return value


def parse_policy(text: str | bytes) -> Policy:
    """
    Return the policy that a document describes.

    Its field ``unused_max`` is for other readers: how many permits of each limit may lie unused in leases. Enforcers
    compute that with :func:`~enforcement.model.lease_bounds.published_bounds`.

    Raises:
        InvalidDocument: It breaks a rule.
    """
    data = DocumentReader(text, {"id", "slug", "name", "version", "limits"}, optional={"unused_max", "metering"})
    data.check_integers("unused_max")
    fields = data.string("name"), data.integer("version")
    try:
        limits = tuple(Limit.from_json(limit, published=True) for limit in data.items("limits"))
        metering = Metering.from_json(data.data.get("metering", {}))
        return Policy(data.string("id"), data.string("slug"), limits, *fields, metering)
    except InvalidLimit as exc:
        raise InvalidDocument(f"limit {exc}") from exc
    except InvalidMetering as exc:
        raise InvalidDocument(f"metering {exc}") from exc


def parse_project(source: str | bytes | Mapping[str, object]) -> ProjectDocument:
    """
    Return the project that a document describes, which may lack the cap and the anonymous policy. Raises
    InvalidDocument.

    Args:
        source: Its JSON text, or its fields if this program has made them.
    """
    optional = {"partition_cap", "anonymous_policy"}
    data = DocumentReader(source, {"id", "slug", "active", "policy", "overrides"}, optional=optional)
    return ProjectDocument(
        data.project_id("id"),
        data.string("slug"),
        data.boolean("active"),
        data.maybe_string("policy"),
        data.overrides(),
        data.cap("partition_cap"),
        data.string("anonymous_policy") if "anonymous_policy" in data.data else None,
    )


def parse_token(source: str | bytes | Mapping[str, object]) -> TokenDocument:
    """
    Return the token that a document describes. Labels and suspension are optional. Raises InvalidDocument.

    Args:
        source: Its JSON text, or its fields if this program has made them.
    """
    names = {"id", "project", "name", "policy", "revoked", "expires_at_us", "overrides"}
    data = DocumentReader(source, names, optional={"labels", "suspended", "suspended_until_us"})
    return TokenDocument(
        id=data.string("id"),
        project=data.string("project"),
        name=data.string("name"),
        policy=data.maybe_string("policy"),
        revoked=data.boolean("revoked"),
        expires_at_us=data.maybe_integer("expires_at_us"),
        overrides=data.overrides(),
        labels=data.labels(),
        suspended=data.boolean("suspended") if "suspended" in data.data else False,
        suspended_until_us=data.integer("suspended_until_us") if "suspended_until_us" in data.data else None,
    )


def parse_global(text: str | bytes) -> str | None:
    """Return the id of the policy that applies to every request, or None. Raises InvalidDocument."""
    return DocumentReader(text, {"policy"}).maybe_string("policy")


def parse_intakes(text: str | bytes) -> frozenset[str]:
    """Return the ids of the projects whose usage is also read from an intake of their own. Raises InvalidDocument."""
    items = DocumentReader(text, {"projects"}).items("projects")
    if not all(isinstance(item, str) and _PROJECT_ID.fullmatch(item) for item in items):
        raise InvalidDocument("projects: must be a list of ids of projects")
    return frozenset(items)


class DocumentReader:
    """
    The fields of one object, read by type. All methods raise InvalidDocument for a field that breaks a rule.

    Args:
        names: Fields that the object must have.
        optional: Fields that it may have. It must not have any other.
        nested: Whether it is part of a document. Such an object has no ``schema``.
    """

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
                raise InvalidDocument(f"schema: must be {SCHEMA}, got {shown(self.data.get('schema'))}")
        odd = sorted((set(self.data) - optional) ^ names)
        if odd:
            raise InvalidDocument(f"{odd[0]}: {'is required' if odd[0] in names else 'unknown field'}")

    def string(self, name: str) -> str:
        value = self.data[name]
        if not isinstance(value, str) or len(value) > MAX_STRING_LENGTH:
            raise InvalidDocument(f"{name}: must be a string of at most {MAX_STRING_LENGTH} characters")
        return value

    def project_id(self, name: str) -> str:
        """
        Return the field *name* if it is the id of a project, which is the hash tag of its counters. No other hash tag
        has this format.
        """
        value = self.string(name)
        if not _PROJECT_ID.fullmatch(value):
            raise InvalidDocument(f'{name}: must be "proj_" and 1 to 35 letters and digits, got {shown(value)}')
        return value

    def cap(self, name: str) -> int:
        if name not in self.data:
            return DEFAULT_CAP
        return self.integer(name, least=1, most=MAX_CAP)

    def check_integers(self, name: str) -> None:
        """Raise InvalidDocument for an optional field that is not an object of integers."""
        values = self.data.get(name, {})
        if not isinstance(values, Mapping):
            raise InvalidDocument(f"{name}: must be an object")
        integers = DocumentReader(values, set(values), nested=True)
        for key in values:
            integers.integer(key)

    def maybe_string(self, name: str) -> str | None:
        return None if self.data[name] is None else self.string(name)

    def integer(self, name: str, least: int = 0, most: int = MAX_NUMBER) -> int:
        value: int = self.data[name]
        if not is_integer(value, least, most):
            raise InvalidDocument(f"{name}: {integer_rule(value, least, most)}")
        return value

    def maybe_integer(self, name: str, least: int = 0) -> int | None:
        return None if self.data[name] is None else self.integer(name, least)

    def boolean(self, name: str) -> bool:
        value = self.data[name]
        if not isinstance(value, bool):
            raise InvalidDocument(f"{name}: must be true or false")
        return value

    def items(self, name: str, most: int = MAX_ITEMS_PER_LIST) -> list[Any]:
        value = self.data[name]
        if not isinstance(value, list) or len(value) > most:
            raise InvalidDocument(f"{name}: must be a list of at most {most} items")
        return value

    def overrides(self) -> tuple[OverrideDocument, ...]:
        return tuple(map(_override, self.items("overrides")))

    def labels(self) -> FrozenMapping[str]:
        try:
            return check_labels(self.data["labels"]) if "labels" in self.data else NO_LABELS
        except ValueError as exc:
            raise InvalidDocument(f"labels: {exc}") from exc

    def partition(self) -> FrozenMapping[str]:
        try:
            return check_partition(self.data["partition"]) if "partition" in self.data else NO_LABELS
        except ValueError as exc:
            raise InvalidDocument(f"partition: {exc}") from exc


def _override(item: object) -> OverrideDocument:
    if not isinstance(item, Mapping):
        raise InvalidDocument("overrides: must be a list of objects")
    names = {"id", "policy", "limit", "quota", "burst", "ends_at_us"}
    data = DocumentReader(item, names, optional={"partition"}, nested=True)
    return OverrideDocument(
        id=data.string("id"),
        policy=data.string("policy"),
        limit=data.string("limit"),
        quota=data.integer("quota"),
        burst=data.maybe_integer("burst", least=1),
        ends_at_us=data.maybe_integer("ends_at_us"),
        partition=data.partition(),
    )
