"""What the page that answers a request keeps from one hook of Django to the next."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Model
from django.http import HttpRequest, QueryDict

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.requests import PerRequest
from controlplane.core.tables.digests import Summary


@dataclass(slots=True)
class Dialog:
    """
    Where the dialog of an action is shown.

    Attributes:
        row: The row that its title names, in a dialog on the page of the row.
        back: The address of that page, for a dialog that is a page of its own.
    """

    row: Model | None = None
    back: str = ""


@dataclass(slots=True)
class PageState:
    """
    What a page keeps while it answers one request.

    Attributes:
        change: The change that is open, or the last one.
        notes: What the user is told once the change is committed, or None outside of a change.
        before: The record of the row before the form was saved, or None for a new row.
        saved: The row that the form has saved.
        selection: The rows of the whole list, if an action is for all of them.
        secret: The secret of a new credential, which only the response to this request shows.
        started: The job that does what was asked for.
    """

    change: OpenChange | None = None
    notes: list[str] | None = None
    before: dict[str, Any] | None = None
    saved: Model | None = None
    selection: Summary | None = None
    secret: str = ""
    started: Model | None = None
    dialog: Dialog = field(default_factory=Dialog)

    @property
    def tx(self) -> OpenChange:
        """The open change."""
        if self.change is None:
            raise RuntimeError("There is no open change.")
        return self.change

    def undone(self) -> None:
        """Forget a change that was undone, and what would have been told of it."""
        self.change = self.notes = None


state_of: PerRequest[PageState] = PerRequest(lambda request: PageState())


def reposted(request: HttpRequest, fields: QueryDict, *, without: Iterable[str] = ()) -> None:
    """Let a request go on as if it had posted *fields*, but for those with a name in *without*."""
    kept = fields.copy()
    for name in without:
        kept.pop(name, None)
    request.POST = QueryDict(kept.urlencode())  # which cannot be changed
