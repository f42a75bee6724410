"""The pages of users, groups and failed log-ins, whose models belong to other packages."""

from collections.abc import Iterator
from typing import Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db import models
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from controlplane.adminkit.forms import RecordedForm
from controlplane.adminkit.lockout import states_of
from controlplane.adminkit.site import ModelAdmin, RecordedAdmin, badge, instant
from controlplane.publishing.changes import Change

for model in (User, Group, AccessAttempt, AccessLog, AccessFailureLog):
    admin.site.unregister(model)


class Recorded:
    """A user or a group as a change records it. Its class belongs to Django and has no record of its own."""

    FIELDS = ("username", "name", "email", "first_name", "last_name", "is_active", "is_staff", "is_superuser")

    def __init__(self, row: User | Group) -> None:
        self.row, self.pk, self._meta = row, row.pk, row._meta

    def __str__(self) -> str:
        return str(self.row)

    def as_record(self) -> dict[str, Any]:
        """
        Return a dictionary of what an audit entry keeps, with the names of groups and permissions, and no password.
        """
        record = {"id": self.pk} | {name: getattr(self.row, name) for name in self.FIELDS if hasattr(self.row, name)}
        if isinstance(self.row, User):
            groups = sorted(self.row.groups.values_list("name", flat=True))
            return record | {"groups": groups, "permissions": _names(self.row.user_permissions.all())}
        return record | {"permissions": _names(self.row.permissions.all())}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know users and groups."""
        yield from ()

    dependents = touches

    def delete(self) -> None:
        self.row.delete()


def _names(permissions: models.QuerySet[Permission]) -> list[str]:
    return sorted(f"{app}.{name}" for app, name in permissions.values_list("content_type__app_label", "codename"))


class UserForm(UserChangeForm):
    change_reason = RecordedForm.base_fields["change_reason"]


class GroupForm(ModelForm):
    change_reason = RecordedForm.base_fields["change_reason"]


class PeopleAdmin(RecordedAdmin):
    """The base class of the pages of users and groups. The audit says who gave which permissions to whom."""

    change_form_before_template = None
    # Django's widget of two boxes with arrows has parts without accessible names.
    filter_horizontal = []

    def recorded(self, obj: User | Group) -> Recorded:
        return Recorded(obj)

    def _publication(self, tx: Change) -> str:
        """Return an empty string, because enforcers do not know users and groups."""
        return ""


@admin.register(User)
class UserAdmin(DjangoUserAdmin, PeopleAdmin):
    form = UserForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "is_staff", "is_superuser", "is_active", "last_login"]
    filter_horizontal = PeopleAdmin.filter_horizontal

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Return the response of the page that sets a user's password, and record a change of it in the audit."""
        if request.method != "POST":
            return super().user_change_password(request, id, form_url)
        with self.changing(request) as tx:
            before = self.get_object(request, unquote(id))
            response = super().user_change_password(request, id, form_url)
            user = before and User.objects.filter(pk=before.pk).first()
            if user and user.password != before.password:
                record = Recorded(user).as_record()
                tx.record("user.password", Recorded(user), before=record, after=record)
        return response


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, PeopleAdmin):
    form = GroupForm
    filter_horizontal = PeopleAdmin.filter_horizontal


@admin.register(AccessAttempt)
class AccessAttemptAdmin(ModelAdmin):
    """
    The page of failed log-ins. Deleting one lets its name and address log in again, and deleting all of an address lets
    that address log in again.
    """

    list_display = ["username", "ip_address", "state", "at", "user_agent"]
    search_fields = ["username", "ip_address"]
    fields = readonly_fields = ["username", "ip_address", "state", "at", "user_agent", "path_info"]
    list_before_template = "admin/sluicegate/lockouts.html"
    empty = ("Nobody has failed to log in.", "")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AccessAttempt | None = None) -> bool:
        return False

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        states = states_of(changelist.result_list, request)
        for attempt in changelist.result_list:
            attempt.state = states[attempt.pk]
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> AccessAttempt | None:
        attempt = super().get_object(request, object_id, from_field)
        if attempt is not None:
            attempt.state = states_of([attempt], request)[attempt.pk]
        return attempt

    @display(description="State")
    def state(self, attempt: AccessAttempt) -> str:
        return badge(*attempt.state)

    @display(description="Last failure", ordering="attempt_time")
    def at(self, attempt: AccessAttempt) -> str:
        return instant(attempt.attempt_time)
