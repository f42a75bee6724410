"""What becomes of objects by one change, whether it is only wanted or made."""

import hashlib
from dataclasses import dataclass

from controlplane.changes.words.differences import Difference, differences
from controlplane.changes.words.fields import Record


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
    """

    kind: str
    pk: str
    label: str
    before: Record | None
    after: Record | None
    project: str | None = None

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
    """

    objects: tuple[ObjectChange, ...]
    stays: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the values, by which a page knows whether the change still is what somebody has confirmed."""
        values = [(one.kind, one.pk, [(d.name, d.before, d.after) for d in one.differences]) for one in self.objects]
        return hashlib.sha256(repr((values, [*self.stays])).encode()).hexdigest()[:32]

    @property
    def projects(self) -> set[str | None]:
        """The ids of the projects whose objects change, and None if only operators may change one so."""
        return {one.project for one in self.objects}
