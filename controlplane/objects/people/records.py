"""Users as the audit keeps them, and whether they are operators."""

from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import Group, User

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.people import second_factor
from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import OPERATORS


class Recorded:
    """A user as a change records it. The class belongs to Django and has no record of its own."""

    FIELDS = ("username", "email", "first_name", "last_name", "is_active", "is_staff", "is_superuser")

    def __init__(self, row: User) -> None:
        self.row, self.pk, self._meta = row, row.pk, row._meta

    def __str__(self) -> str:
        return str(self.row)

    def as_record(self) -> dict[str, Any]:
        """Return a dictionary of what an audit entry keeps, without the password. Memberships have their own."""
        record = {"id": self.pk} | {name: getattr(self.row, name) for name in self.FIELDS}
        has_device = second_factor.device_of(self.row) is not None
        return record | {"operator": is_in_operators(self.row), "second_factor": has_device}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know users."""
        yield from ()

    def dependents(self) -> Iterator[Membership]:
        """Yield the memberships of this user, which are deleted with this row."""
        yield from self.row.memberships.select_related("user", "project")

    def delete(self) -> None:
        self.row.delete()


def is_in_operators(user: User) -> bool:
    """Return whether the user is in the group of operators, as the database has it now."""
    return user.groups.filter(name=OPERATORS).exists()


def set_operator(user: User, operator: bool) -> None:
    """Add the user to the group of operators, or take the user out of it."""
    group, _ = Group.objects.get_or_create(name=OPERATORS)
    if operator:
        user.groups.add(group)
    else:
        user.groups.remove(group)


def reset_second_factor(tx: OpenChange, user: User) -> bool:
    """Remove the second factor of a user with an audit entry, and return whether there was one."""
    record = Recorded(user)
    before = record.as_record()
    if not second_factor.remove(user):
        return False
    tx.record("user.second_factor_reset", record, before=before, after=record.as_record())
    return True
