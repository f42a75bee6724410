"""
Read the document of an emergency, which says what is suspended and whether every limit is a shadow.

It is there only while there is an emergency. An enforcer that does not know it reports it as unknown and goes on
enforcing its limits. Suspended projects are also published as inactive, and it refuses those.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from enforcement.model.documents import DocumentReader, InvalidDocument
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH

MAX_GLASS_SECONDS: Final = DAY_SECONDS
"""How long at most every limit is a shadow, whatever a document says."""

Values = Mapping[str, frozenset[str]]
_NO_VALUES: Final[Values] = MappingProxyType({})


class Emergency(NamedTuple):
    """
    What operators have suspended, and whether they have broken the glass.

    Attributes:
        glass_from_us: From when on every limit is a shadow, microseconds since the epoch.
        glass_until_us: Until when every limit is a shadow, microseconds since the epoch. 0: no limit is because of it.
        projects: Ids of the suspended projects.
        values: The suspended values of attributes by name, by the id of a project. The id "" stands for all projects.
    """

    glass_from_us: int = 0
    glass_until_us: int = 0
    projects: frozenset[str] = frozenset()
    values: Mapping[str, Values] = MappingProxyType({})

    def is_glass_broken(self, now_us: int) -> bool:
        """Return whether every limit is a shadow at an instant, in microseconds since the epoch."""
        return self.glass_from_us <= now_us < self.glass_until_us

    def glass_changes_at_us(self, now_us: int) -> int | None:
        """Return the next instant at which limits become shadows or are enforced again. None: there is none."""
        return next((at_us for at_us in (self.glass_from_us, self.glass_until_us) if now_us < at_us), None)

    def values_in(self, project: str) -> Values:
        """Return the values of attributes that are suspended in a project, by the name of the attribute."""
        if not self.values:
            return _NO_VALUES
        everywhere, own = self.values.get("", _NO_VALUES), self.values.get(project, _NO_VALUES)
        return {name: everywhere.get(name, frozenset()) | own.get(name, frozenset()) for name in {*everywhere, *own}}


NO_EMERGENCY: Final = Emergency()


def parse_emergency(text: str | bytes) -> Emergency:
    """
    Return the emergency that a JSON document describes.

    Raises:
        InvalidDocument: It breaks a rule. A glass that is broken for more than a day is one of these.
    """
    data = DocumentReader(text, {"break_glass", "projects", "values"})
    projects = frozenset(_string("projects", item) for item in data.items("projects"))
    values: dict[str, dict[str, set[str]]] = {}
    for item in data.items("values"):
        project, name, value = _value(item)
        values.setdefault(project, {}).setdefault(name, set()).add(value)
    frozen = {project: {name: frozenset(some) for name, some in of.items()} for project, of in values.items()}
    return Emergency(*_glass(data.data["break_glass"]), projects, frozen)


def _glass(item: Any) -> tuple[int, int]:
    if item is None:
        return 0, 0
    data = DocumentReader(_mapping("break_glass", item), {"began_at_us", "ends_at_us"}, nested=True)
    began, ends = data.integer("began_at_us"), data.integer("ends_at_us")
    if not 0 < ends - began <= MAX_GLASS_SECONDS * 1_000_000:
        raise InvalidDocument(f"break_glass: must end within {MAX_GLASS_SECONDS} seconds of its beginning")
    return began, ends


def _value(item: Any) -> tuple[str, str, str]:
    data = DocumentReader(_mapping("values", item), {"project", "name", "value"}, nested=True)
    name, value = data.data["name"], data.data["value"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ATTRIBUTE_NAME_LENGTH:
        raise InvalidDocument(f"values: a name must have 1 to {MAX_ATTRIBUTE_NAME_LENGTH} characters")
    if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH:
        raise InvalidDocument(f"values: a value must have at most {MAX_ATTRIBUTE_LENGTH} characters")
    project = data.maybe_string("project")
    if project == "":
        raise InvalidDocument("values: a project must have an id, or be null for all projects")
    return project or "", name, value


def _string(name: str, item: Any) -> str:
    if not isinstance(item, str):
        raise InvalidDocument(f"{name}: must be a list of strings")
    return item


def _mapping(name: str, item: Any) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise InvalidDocument(f"{name}: must be an object")
    return item


__all__ = ["MAX_GLASS_SECONDS", "NO_EMERGENCY", "Emergency", "parse_emergency"]
