"""The pages of users, groups and failed log-ins, whose models belong to other packages."""

from axes.conf import settings as axes_settings
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from controlplane.adminkit.site import ModelAdmin, badge, instant

for model in (User, Group, AccessAttempt, AccessLog, AccessFailureLog):
    admin.site.unregister(model)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "is_staff", "is_superuser", "is_active", "last_login"]
    # Django's widget of two boxes with arrows has parts without accessible names.
    filter_horizontal = []


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    filter_horizontal = []


@admin.register(AccessAttempt)
class AccessAttemptAdmin(ModelAdmin):
    """The page of failed log-ins. Deleting one lets its name and address log in again."""

    list_display = ["username", "ip_address", "state", "at", "user_agent"]
    search_fields = ["username", "ip_address"]
    fields = readonly_fields = ["username", "ip_address", "state", "at", "user_agent", "path_info"]
    empty = ("Nobody has failed to log in. Delete an entry to let its name and address log in again.", "")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AccessAttempt | None = None) -> bool:
        return False

    @display(description="State")
    def state(self, attempt: AccessAttempt) -> str:
        failures, most = attempt.failures_since_start, axes_settings.AXES_FAILURE_LIMIT
        return badge("locked out", "bad") if failures >= most else badge(f"{failures} of {most} failures", "warn")

    @display(description="Last failure", ordering="attempt_time")
    def at(self, attempt: AccessAttempt) -> str:
        return instant(attempt.attempt_time)
