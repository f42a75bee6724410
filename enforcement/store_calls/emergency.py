"""
Read the document of an emergency, which says what is suspended and whether every limit is a shadow.

It is there only while there is an emergency. An enforcer that does not know it reports it as unknown and goes on
enforcing its limits. Suspended projects are also published as inactive, and it refuses those until the control plane
resumes them. A suspension with an end is over at that instant by the clock of the store, as each enforcer estimates it,
whether the control plane has taken it back by then or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from enforcement.model.documents import DocumentReader, InvalidDocument, ProjectDocument, TokenDocument
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH

MAX_GLASS_SECONDS: Final = DAY_SECONDS
"""How long at most every limit is a shadow, whatever a document says."""

Ends = Mapping[str, int | None]
"""Suspended values, each with the end of its suspension in microseconds since the epoch. None: it has no end."""

Values = Mapping[str, Ends]
_NO_VALUES: Final[Values] = MappingProxyType({})
_NO_ENDS: Final[Ends] = MappingProxyType({})


class SuspendedProject(NamedTuple):
    """
    A suspended project.

    Attributes:
        ends_at_us: When its suspension ends, microseconds since the epoch. None: it has no end.
        active: Whether it is active after that. Its document says inactive until the control plane has resumed it.
    """

    ends_at_us: int | None = None
    active: bool = False


def is_in_force(ends_at_us: int | None, now_us: int) -> bool:
    """Return whether a suspension with this end, or without one, is in force."""
    return ends_at_us is None or now_us < ends_at_us


def last_end(ends: Iterable[int | None]) -> int | None:
    """Return when the last of some suspensions ends, at least one. None: one of them has no end."""
    found = list(ends)
    return None if None in found else max(end for end in found if end is not None)


class Emergency(NamedTuple):
    """
    The suspensions and the broken glass, as operators have published them.

    Attributes:
        glass_from_us: From when on every limit is a shadow, microseconds since the epoch.
        glass_until_us: Until when every limit is a shadow, microseconds since the epoch. 0: no limit is because of it.
        projects: The suspended projects by id.
        values: The suspended values of attributes by name, by the id of a project. The id "" stands for all projects.
    """

    glass_from_us: int = 0
    glass_until_us: int = 0
    projects: Mapping[str, SuspendedProject] = MappingProxyType({})
    values: Mapping[str, Values] = MappingProxyType({})

    def is_glass_broken(self, now_us: int) -> bool:
        """Return whether every limit is a shadow at an instant, in microseconds since the epoch."""
        return self.glass_from_us <= now_us < self.glass_until_us

    def glass_changes_at_us(self, now_us: int) -> int | None:
        """Return the next instant at which limits become shadows or are enforced again. None: there is none."""
        return next((at_us for at_us in (self.glass_from_us, self.glass_until_us) if now_us < at_us), None)

    def suspensions(self, token: TokenDocument, now_us: int) -> list[int | None]:
        """Return the end of each suspension in force of a token and of its project, with None for no end."""
        project = self.projects.get(token.project)
        ends = [token.suspended_until_us] if token.suspended else []
        ends += [] if project is None else [project.ends_at_us]
        return [end for end in ends if is_in_force(end, now_us)]

    def is_active(self, project: ProjectDocument) -> bool:
        """Return whether a project is active. Of one that is or was suspended, its own document does not say so."""
        suspended = self.projects.get(project.id)
        return project.active or (suspended is not None and suspended.active)

    def values_in(self, project: str, now_us: int) -> Values:
        """Return the values of attributes that are suspended in a project now, by the name of the attribute."""
        if not self.values:
            return _NO_VALUES
        everywhere, own = self.values.get("", _NO_VALUES), self.values.get(project, _NO_VALUES)
        values: dict[str, dict[str, int | None]] = {}
        for name in {*everywhere, *own}:
            both = everywhere.get(name, _NO_ENDS), own.get(name, _NO_ENDS)
            for value in {*both[0], *both[1]}:
                ends_at_us = last_end(ends[value] for ends in both if value in ends)
                if is_in_force(ends_at_us, now_us):
                    values.setdefault(name, {})[value] = ends_at_us
        return values


NO_EMERGENCY: Final = Emergency()


def parse_emergency(text: str | bytes) -> Emergency:
    """
    Return the emergency that a JSON document describes.

    Raises:
        InvalidDocument: It breaks a rule. A glass that is broken for more than a day is one of these.
    """
    data = DocumentReader(text, {"break_glass", "projects", "values"}, optional={"ending_projects"})
    projects = {_string("projects", item): SuspendedProject() for item in data.items("projects")}
    if "ending_projects" in data.data:
        projects |= dict(map(_ending_project, data.items("ending_projects")))
    values: dict[str, dict[str, dict[str, int | None]]] = {}
    for item in data.items("values"):
        project, name, value, ends_at_us = _value(item)
        values.setdefault(project, {}).setdefault(name, {})[value] = ends_at_us
    return Emergency(*_glass(data.data["break_glass"]), projects, values)


def _glass(item: object) -> tuple[int, int]:
    if item is None:
        return 0, 0
    data = DocumentReader(_mapping("break_glass", item), {"began_at_us", "ends_at_us"}, nested=True)
    began, ends = data.integer("began_at_us"), data.integer("ends_at_us")
    if not 0 < ends - began <= MAX_GLASS_SECONDS * 1_000_000:
        raise InvalidDocument(f"break_glass: must end within {MAX_GLASS_SECONDS} seconds of its beginning")
    return began, ends


def _ending_project(item: object) -> tuple[str, SuspendedProject]:
    data = DocumentReader(_mapping("ending_projects", item), {"id", "ends_at_us", "active"}, nested=True)
    return data.string("id"), SuspendedProject(data.integer("ends_at_us"), data.boolean("active"))


def _value(item: object) -> tuple[str, str, str, int | None]:
    names = {"project", "name", "value"}
    data = DocumentReader(_mapping("values", item), names, optional={"ends_at_us"}, nested=True)
    name, value = data.data["name"], data.data["value"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ATTRIBUTE_NAME_LENGTH:
        raise InvalidDocument(f"values: a name must have 1 to {MAX_ATTRIBUTE_NAME_LENGTH} characters")
    if not isinstance(value, str) or len(value) > MAX_ATTRIBUTE_LENGTH:
        raise InvalidDocument(f"values: a value must have at most {MAX_ATTRIBUTE_LENGTH} characters")
    project = data.maybe_string("project")
    if project == "":
        raise InvalidDocument("values: a project must have an id, or be null for all projects")
    return project or "", name, value, data.integer("ends_at_us") if "ends_at_us" in data.data else None


def _string(name: str, item: object) -> str:
    if not isinstance(item, str):
        raise InvalidDocument(f"{name}: must be a list of strings")
    return item


def _mapping(name: str, item: object) -> Mapping[str, object]:
    if not isinstance(item, Mapping):
        raise InvalidDocument(f"{name}: must be an object")
    return item
