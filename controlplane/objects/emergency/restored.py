"""
Suspensions that the store has and a restored database lacks.

The documents of the store are the only record of suspensions that were made after the backup. They are compared before
the database is published, and what is missing is suspended again with the end that it has in the store.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.emergency.actions import set_end, suspend, suspend_value
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.projects.models import Project, Token
from enforcement.model.instants import from_us

Documents = Mapping[str, Any]
"""The field of each document of the store, and the JSON value of the document, whatever it is."""


@dataclass(frozen=True, slots=True)
class Missing:
    """
    A suspension that the database lacks, or has with an earlier end.

    Attributes:
        subject: The token or the project that is suspended, or None for a value.
        within: Of a value, the project in which it is suspended, or None for all of them.
        attribute: Of a value, the name of the attribute and the value.
        ends_at: The end that it has in the store, or None if it has none.
    """

    subject: Token | Project | None
    ends_at: datetime | None
    within: Project | None = None
    attribute: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        if self.subject is not None:
            return f"The {self.subject._meta.model_name} {self.subject.name} ({self.subject.pk})"
        name, value = self.attribute
        return f"The value {name} = {value} " + (f"in {self.within.name}" if self.within else "in all projects")

    @property
    def present(self) -> Suspension | None:
        """The matching suspension in the database, which may have ended."""
        if self.subject is not None:
            return Suspension.objects.filter(**{str(self.subject._meta.model_name): self.subject}).first()
        name, value = self.attribute
        same = Suspension.objects.filter(within=self.within, name=name, value=value, token=None, project=None)
        return same.first()

    def is_missing(self, now: datetime) -> bool:
        """Return whether the database would let in sooner what the store refuses."""
        if self.ends_at is not None and self.ends_at <= now:
            return False
        present = self.present
        if present is None or present.ends_at is None:
            return present is None
        return self.ends_at is None or present.ends_at < self.ends_at

    def suspend(self, tx: OpenChange) -> None:
        """Suspend it again, with an audit entry. Raises ValidationError if its end is over or there is no room."""
        present = self.present
        if present is not None and present.is_in_force(timezone.now()):
            set_end(tx, present, self.ends_at)
        elif self.subject is not None:
            suspend(tx, self.subject, self.ends_at)
        else:
            suspend_value(tx, *self.attribute, self.within, self.ends_at)


def missing_in(documents: Documents, now: datetime) -> Iterator[Missing]:
    """
    Yield the projects and values that the store refuses and the database does not.

    A project that the store has as inactive is among them: it was suspended, or made inactive, after the backup.
    """
    found = documents.get("emergency")
    emergency: dict[str, Any] = found if isinstance(found, dict) else {}
    projects = {project.pk: project for project in Project.objects.all()}
    ends = {item["id"]: item["ends_at_us"] for item in emergency.get("ending_projects") or ()}
    for pk, project in projects.items():
        document = documents.get(f"project:{pk}")
        if project.active and isinstance(document, dict) and document.get("active") is False:
            one = Missing(project, _instant(ends.get(pk)))
            if one.is_missing(now):
                yield one
    for item in emergency.get("values") or ():
        within = item["project"]
        if within is None or within in projects:
            end, named = _instant(item.get("ends_at_us")), (item["name"], item["value"])
            one = Missing(None, end, within and projects[within], named)
            if one.is_missing(now):
                yield one


def missing_of(token: str, document: Mapping[str, Any], now: datetime) -> Missing | None:
    """Return the suspension of a token that its document in the store has and the database lacks, or None."""
    if not document.get("suspended"):
        return None
    one = Missing(Token(pk=token, name=document.get("name", "")), _instant(document.get("suspended_until_us")))
    return one if one.is_missing(now) else None


def _instant(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)
