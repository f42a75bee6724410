"""Assumptions of a preview that are not saved: who has the policy, and with which overrides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from controlplane.objects.overrides.models import Override
from controlplane.traffic.callers.kinds import PROJECT, TOKEN, Caller
from enforcement.model.documents import OverrideDocument as OverrideValue
from enforcement.model.limits import Limit


@dataclass(frozen=True, slots=True)
class SupposedOverride:
    """An override as it would be: other numbers of the limit with this name, for one token or project."""

    holder: Caller
    limit: str
    quota: int
    burst: int | None = None


@dataclass(frozen=True, slots=True)
class Supposed:
    """
    The state after a change, as far as it differs from what is saved.

    Attributes:
        holders: These callers count, as if they had the policy, and no others. None: all that have it.
        projects: With *holders*, those that have the policy in the projects with these ids count, too.
        gone: Ids of saved overrides that do not count.
        overrides: Overrides that count in their place.
    """

    holders: frozenset[Caller] | None = None
    projects: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    overrides: tuple[SupposedOverride, ...] = ()

    @property
    def is_narrowed(self) -> bool:
        """Whether some callers do not count though they have the policy."""
        return self.holders is not None

    def ids(self, kind: str) -> list[str]:
        """Return the ids of the holders of a kind."""
        return sorted(pk for of_kind, pk in self.holders or () if of_kind == kind)

    def to_json(self) -> dict[str, object]:
        """Return the state as values that a job keeps."""
        return {
            "holders": None if self.holders is None else sorted(self.holders),
            "projects": sorted(self.projects),
            "gone": sorted(self.gone),
            "overrides": [
                [*override.holder, override.limit, override.quota, override.burst] for override in self.overrides
            ],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return the state that a job has kept."""
        holders = found["holders"]
        return cls(
            None if holders is None else frozenset((kind, pk) for kind, pk in holders),
            frozenset(found["projects"]),
            frozenset(found["gone"]),
            tuple(SupposedOverride((kind, pk), *numbers) for kind, pk, *numbers in found["overrides"]),
        )


SAVED = Supposed()
"""The saved rows, and nothing else."""


def holder_of(override: Override) -> Caller:
    """Return the holder of a saved override."""
    return (TOKEN, override.token_id) if override.token_id else (PROJECT, override.project_id or "")


def overridden(limit: Limit, quota: int, burst: int | None) -> Limit:
    """
    Return a limit with the numbers of an override, as enforcers have it.

    Raises:
        InvalidLimit: The numbers do not fit the limit.
    """
    return OverrideValue("", "", limit.name, quota, burst).apply(limit)
