"""What becomes of objects by one change, whether it is only wanted or made."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from controlplane.changes.words.differences import Difference, differences
from controlplane.changes.words.fields import Record
from controlplane.core.records import RecordedModel


class State(StrEnum):
    """How far a change has come."""

    WANTED = "wanted"  # by a file, an undo or a roll-back
    KEPT = "kept"  # as a draft
    REVIEWED = "reviewed"  # looked at before it is made
    TRIED = "tried"  # made, and undone in the same transaction
    APPLIED = "applied"


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """
    What becomes of one object.

    Attributes:
        kind: The type of the object, as in the audit.
        pk: Its id. An override that begins again gets another one.
        label: Its name for people.
        before, after: Its records. None: it is not there, or an override is over.
        project: The id of the project whose editors may change it so. None stands for operators.
        deed: What the audit calls it, such as ``policy.update``. Empty before it is made.
    """

    kind: str
    pk: str
    label: str
    before: Record | None
    after: Record | None
    project: str | None = None
    deed: str = ""

    @classmethod
    def of(cls, row: RecordedModel, before: Record | None) -> "ObjectChange":
        """Return what has become of a row that had this record before."""
        return cls(str(row._meta.model_name), str(row.pk), str(row), before, row.as_record())

    @property
    def action(self) -> str:
        """What is done to the object: ``create``, ``update`` or ``delete``."""
        return "create" if self.before is None else "delete" if self.after is None else "update"

    @property
    def title(self) -> str:
        """Its kind and name, such as "policy free"."""
        return f"{self.kind} {self.label}"

    @property
    def differences(self) -> list[Difference]:
        """What changes, field by field."""
        return differences(self.kind, self.before, self.after)


@dataclass(frozen=True, slots=True)
class Change:
    """
    What becomes of several objects.

    Attributes:
        objects: In the order in which they are written.
        stays: What stays although somebody may expect that it changes, in sentences.
        state: How far it has come.
        by: The name of its author, if it is kept or made.
        reason: Why, in the words of the author.
    """

    objects: tuple[ObjectChange, ...] = ()
    stays: tuple[str, ...] = ()
    state: State = State.WANTED
    by: str = ""
    reason: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether no field of any object would have another value."""
        return not any(one.differences for one in self.objects)

    @property
    def merged(self) -> "Change":
        """The same with one change for each object, from before its first to after its last one."""
        found: dict[tuple[str, str], ObjectChange] = {}
        for one in self.objects:
            first = found.get((one.kind, one.pk), one)
            found[one.kind, one.pk] = replace(one, before=first.before)
        return replace(self, objects=tuple(found.values()))

    @property
    def digest(self) -> str:
        """A digest of the values, by which a page knows whether the change still is what somebody has confirmed."""
        values = [(one.kind, one.pk, [(d.name, d.before, d.after) for d in one.differences]) for one in self.objects]
        return hashlib.sha256(repr((values, [*self.stays])).encode()).hexdigest()[:32]

    @property
    def projects(self) -> set[str | None]:
        """The ids of the projects whose objects change, and None if only operators may change one so."""
        return {one.project for one in self.objects}


NOTHING = Change()
