"""Which rows of a model each user sees and changes in the admin, as a value of the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType

from django.contrib.admin.utils import unquote
from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model, Q, QuerySet

from controlplane.objects.people.roles import EDITOR, OWNER, VIEWER
from controlplane.objects.people.scope import is_member, is_operator, joined

type Visitor = User | AnonymousUser
# The kinds of access to a row.
KINDS = ("view", "add", "change", "delete")
Roles = Mapping[str, str | None]
BY_EDITORS: Roles = MappingProxyType({"view": VIEWER, "add": EDITOR, "change": EDITOR, "delete": EDITOR})
BY_OWNERS: Roles = MappingProxyType(dict.fromkeys(KINDS, OWNER))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScope[M: Model]:
    """
    The rows of a page that each user sees and changes. Operators have all of them.

    Without any path, without ``shared`` and without ``members``, only operators have some.

    Attributes:
        paths: The ways from a row to the id of a project, such as "project_id", "policy__project_id", or "pk" for
            projects themselves. A row belongs to each project that one of them leads to.
        shared: Whether members read the rows that belong to no project. Only operators change them.
        roles: The least role in the project of a row for each kind of access. None stands for operators.
        members: Returns those of some rows that a member has, in place of what the paths say.
        limits: Returns those of some rows to which even operators have this kind of access.
    """

    paths: tuple[str, ...] = ()
    shared: bool = False
    roles: Roles = BY_EDITORS
    members: Callable[[QuerySet[M], Visitor, str], QuerySet[M]] | None = None
    limits: Callable[[QuerySet[M], Visitor, str], QuerySet[M]] | None = None

    def narrow(self, rows: QuerySet[M], user: Visitor, kind: str = "view") -> QuerySet[M]:
        """Return those of *rows* to which the user has this kind of access."""
        if not is_operator(user):
            rows = self.of_projects(rows, user, kind) if self.members is None else self.members(rows, user, kind)
        return rows if self.limits is None else self.limits(rows, user, kind)

    def of_projects(self, rows: QuerySet[M], user: Visitor, kind: str) -> QuerySet[M]:
        """Return those of *rows* that a member has by the projects to which the paths lead."""
        role, found = self.roles[kind], Q(pk__in=())
        if role is not None and self.paths:
            # Without a query of the projects, which the database would join to each row.
            projects = joined(user, role)
            found = reduce(or_, (Q((f"{path}__in", projects)) for path in self.paths))
        if self.shared and kind == "view" and is_member(user):
            if not self.paths:
                return rows
            found = reduce(or_, (Q((f"{path}__isnull", True)) for path in self.paths), found)
        return rows.filter(found)

    def allows(self, rows: QuerySet[M], user: Visitor, kind: str, row: M | str | None = None) -> bool:
        """
        Return whether the user has this kind of access to a row, or without one to some row.

        Args:
            rows: All rows of the model.
            row: The row, or its key as an address has it, as the theme's actions give it.
        """
        if row is None:
            role = self.roles[kind]
            has_some = bool(role and (self.paths or self.members)) or (self.shared and kind == "view")
            return is_operator(user) or (has_some and is_member(user, role or VIEWER))
        if is_operator(user) and self.limits is None:
            return True
        key = unquote(row) if isinstance(row, str) else row.pk
        return self.narrow(rows.filter(pk=key), user, kind).exists()
