"""
Read which entries of a rate limit descriptor stand for what.

The file is TOML. All of it is optional::

    token = ["token", "key"]       # entries that hold the token
    unit = "unit"                  # the entry whose value is the unit of hits_addend in its descriptor
    after = "after"                # the entry that says: the request has ended, charge it without a denial

    [attributes]                   # entries that are an attribute of another name
    remote_address = "ip"

    [costs]                        # entries whose value is a cost, and its unit
    prompt_tokens = "input_tokens"

    [projects]                     # domains of the calls, and the slug of the project that each stands for
    edge_gateway = "website"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from enforcement.model.checks import shown
from enforcement.model.limits import UNIT_RULE, is_unit
from enforcement.model.matching import ATTRIBUTE_NAME_RULE, is_attribute_name, is_label
from enforcement.model.tokens import Anonymous

MAX_FILE_BYTES: Final = 65_536

_ADDRESSES: Final = {"remote_address": "ip"}


@dataclass(frozen=True, slots=True)
class RlsMapping:
    """
    The meaning of the entries of descriptors. An entry that is not named is an attribute of its own name.

    Attributes:
        token: Keys of the entries that hold the token.
        unit: Key of the entry whose value is the unit that ``hits_addend`` counts in the same descriptor. Empty: there
            is none, and ``hits_addend`` counts requests.
        after: Key of the entry that says that the request has ended, with the value ``true``. It is then charged
            without a denial. Empty: there is none.
        attributes: Names of attributes by key.
        costs: Units by key of the entries whose value is a cost.
        projects: Slugs by domain. A domain that is not named is the slug itself.
    """

    token: tuple[str, ...] = ("token", "authorization", "x-api-key", "api_key")
    unit: str = ""
    after: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: _ADDRESSES)
    costs: Mapping[str, str] = field(default_factory=dict)
    projects: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str) -> RlsMapping:
        """
        Return the mapping in a file.

        Raises:
            ValueError: The file cannot be read or breaks a rule. The message names the file and what is wrong.
        """
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise ValueError(f"{path} cannot be read: {exc.strerror}.") from exc
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"{path} must have at most {MAX_FILE_BYTES} bytes.")
        try:
            return cls.parse(data.decode())
        except ValueError as exc:  # also tomllib.TOMLDecodeError and UnicodeDecodeError
            raise ValueError(f"{path}: {exc}") from exc

    @classmethod
    def parse(cls, source: str) -> RlsMapping:
        """Return the mapping in a string of TOML, or raise ValueError."""
        values: dict[str, object] = tomllib.loads(source)
        unknown = sorted(values.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"{unknown[0]}: must be one of {', '.join(cls.__dataclass_fields__)}.")
        mapping = cls(
            token=_keys("token", values.get("token", list(cls().token))),
            unit=_key("unit", values.get("unit", "")),
            after=_key("after", values.get("after", "")),
            attributes=_ADDRESSES | _table("attributes", values.get("attributes", {})),
            costs=_table("costs", values.get("costs", {})),
            projects=_table("projects", values.get("projects", {})),
        )
        mapping._check()
        return mapping

    def project(self, domain: str) -> Anonymous:
        """Return what stands for requests without a token of a domain, or raise ValueError if it cannot be a slug."""
        try:
            return Anonymous(self.projects.get(domain, domain))
        except ValueError as exc:
            raise ValueError(f"domain: {str(exc).removeprefix('project: ')}") from exc

    def _check(self) -> None:
        for key, name in self.attributes.items():
            if is_label(name):
                raise ValueError(f"attributes.{key}: must not be a label, which only a token has, got {shown(name)}.")
        for key, unit in self.costs.items():
            if not is_unit(unit):
                raise ValueError(f"costs.{key}: must be {UNIT_RULE}, got {shown(unit)}.")
        for domain, slug in self.projects.items():
            try:
                Anonymous(slug)
            except ValueError as exc:
                raise ValueError(f"projects.{domain}: {str(exc).removeprefix('project: ')}") from exc
        units = list(self.costs.values())
        for key, unit in self.costs.items():
            if units.count(unit) > 1:
                raise ValueError(f"costs.{key}: must be the only key of its unit, got two for {shown(unit)}.")
        for key, name in self.attributes.items():
            if not is_attribute_name(name):
                raise ValueError(f"attributes.{key}: must be {ATTRIBUTE_NAME_RULE}, got {shown(name)}.")
        roles = [*self.token, *filter(None, (self.unit, self.after)), *self.costs, *self.attributes]
        twice = next((key for key in roles if roles.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice}: must stand for one thing, but is named twice.")


def _keys(name: str, value: object) -> tuple[str, ...]:
    # Without a key, no request would ever show a token, and each would count as anonymous.
    if not isinstance(value, list) or not value or not all(isinstance(key, str) and key for key in value):
        raise ValueError(f"{name}: must be a list of at least one key, got {shown(value)}.")
    return tuple(value)


def _key(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be the key of an entry, got {shown(value)}.")
    return value


def _table(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(key and isinstance(text, str) and text for key, text in value.items()):
        raise ValueError(f"{name}: must be a table of keys and strings, none of them empty, got {shown(value)}.")
    return value
