"""The page of failed log-ins, whose model belongs to another package."""

from collections.abc import Iterator
from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.models import User
from django.forms import ModelForm
from unfold.decorators import display

from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.parts import Column
from controlplane.web.kit.site import badge, instant
from controlplane.web.login.known_browsers import is_of_a_browser
from controlplane.web.login.lockout import states_of

for model in (AccessAttempt, AccessLog, AccessFailureLog):
    admin.site.unregister(model)


class Failures:
    """The failed log-ins of a name at an address, as the audit records their deletion, which ends a lock-out."""

    def __init__(self, row: AccessAttempt) -> None:
        self.row, self.pk, self._meta = row, row.pk, row._meta

    def __str__(self) -> str:
        return f"failures from {_address_of(self.row)}"

    def as_record(self) -> dict[str, Any]:
        """Return a dictionary of what an audit entry keeps. People also type their password in place of the name."""
        known = User.objects.filter(username=self.row.username).exists()
        shown = {"username": self.row.username if known else "of no account", "address": _address_of(self.row)}
        return {"id": self.pk, **shown, "failures": self.row.failures_since_start}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know log-ins."""
        yield from ()

    dependents = touches

    def delete(self) -> None:
        self.row.delete()


def _address_of(attempt: AccessAttempt) -> str:
    return "a known browser" if is_of_a_browser(attempt.ip_address) else attempt.ip_address or "—"


STATE = Column[AccessAttempt, dict[int, tuple[str, str]]](
    name="state", title="State", read=states_of, show=lambda attempt, states: badge(*states[attempt.pk])
)


@admin.register(AccessAttempt)
class AccessAttemptAdmin(EditPage):
    """
    The page of failed log-ins. Deleting one lets its name and address log in again, and deleting all of an address lets
    that address log in again.
    """

    kinds = frozenset({"view", "delete"})
    is_published = False
    form = ModelForm
    change_form_before_template = None
    columns = (STATE,)
    list_display = ["username", "address", "state", "at", "user_agent"]
    search_fields = ["username", "ip_address"]
    fields = readonly_fields = ["username", "address", "state", "at", "user_agent", "path_info"]
    list_before_template = "admin/sluicegate/lockouts.html"
    empty = ("Nobody has failed to log in.", "")

    @display(description="Address", ordering="ip_address")
    def address(self, attempt: AccessAttempt) -> str:
        return _address_of(attempt)

    @display(description="Last failure", ordering="attempt_time")
    def at(self, attempt: AccessAttempt) -> str:
        return instant(attempt.attempt_time)

    def recorded(self, obj: AccessAttempt) -> Failures:
        return Failures(obj)
