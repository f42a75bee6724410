"""The pages of people: the users, whose model belongs to Django, with what they may do in which project."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.decorators import display
from unfold.enums import ActionVariant
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldBooleanSwitchWidget

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.people.models import Membership
from controlplane.objects.people.records import Recorded, is_in_operators, reset_second_factor, set_operator
from controlplane.objects.people.roles import OPERATOR_WORDS, OPERATORS, OWNER, WORDS
from controlplane.objects.people.scope import is_member, is_operator, projects_of
from controlplane.web.kit.dialogs import Asking, Done, Page, RowAction, in_one_change
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.forms import RecordedForm
from controlplane.web.kit.parts import Column
from controlplane.web.kit.site import badge, instant, link_to, links, user_of
from controlplane.web.scope.rows import RowScope, Visitor

# The pages of authenticators would show their keys.
for model in (User, Group, TOTPDevice, StaticDevice):
    admin.site.unregister(model)


class UserForm(UserChangeForm):
    """
    The form of a person.

    Nobody takes away the own access, so that at least one operator is left.
    """

    operator = forms.BooleanField(
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text=f"{OPERATOR_WORDS.capitalize()}. All others see the projects of which they are members.",
    )
    change_reason = RecordedForm.base_fields["change_reason"]
    # The user who saves the form.
    user: User

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.initial["operator"] = is_in_operators(self.instance)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.instance.pk == self.user.pk:
            needed = ["is_active", "is_staff", "is_superuser" if self.user.is_superuser else "operator"]
            for name in needed:
                if name in self.fields and not cleaned.get(name):
                    self.add_error(name, "Must not be taken away from yourself. Ask another operator.")
        return cleaned


class PersonCreationForm(UserCreationForm):
    """The form of a new person, who may log in to the admin and sees nothing before the first membership."""

    def save(self, commit: bool = True) -> User:
        self.instance.is_staff = True
        return super().save(commit)


def _of_owners(rows: QuerySet[User], user: Visitor, kind: str) -> QuerySet[User]:
    """Return the members of the projects that an owner owns."""
    owned = Membership.objects.filter(project__in=projects_of(user, OWNER)).order_by()
    return rows.filter(pk__in=owned.values("user")) if kind == "view" else rows.none()


def _but_oneself(rows: QuerySet[User], user: Visitor, kind: str) -> QuerySet[User]:
    """Return *rows* without the own account, if they are deleted, so that one operator is left."""
    return rows.exclude(pk=user.pk) if kind == "delete" and user.pk else rows


def _reset(tx: OpenChange, user: User, given: dict[str, Any]) -> Done:
    if reset_second_factor(tx, user):
        return Done(f"{user} logs in without a second factor now.")
    return Done(f"{user} has no second factor. Nothing was changed.", messages.WARNING)


def _may_reset(page: Page, request: HttpRequest, object_id: str) -> bool:
    """Return whether the user is an operator and the account is of somebody else. The own page asks for a code."""
    return is_operator(request.user) and unquote(object_id) != str(request.user.pk)


RESET_SECOND_FACTOR = RowAction(
    name="reset_second_factor",
    title="Reset second factor",
    icon="phonelink_erase",
    variant=ActionVariant.DANGER,
    may=_may_reset,
    answer=in_one_change(_reset),
    dialog=Asking(
        title="Reset the second factor",
        description="For somebody who has lost the device and the recovery codes. Make sure who asks for it. "
        "The password alone then lets the account in, which adds a new authenticator.",
        submit="Reset second factor",
    ),
)


def _memberships(users: Sequence[User], request: HttpRequest) -> Mapping[int, list[Membership]]:
    """Return the memberships by user, in the projects that the reader owns."""
    rows = Membership.objects.filter(user__in=users, project__in=projects_of(request.user, OWNER))
    found: dict[int, list[Membership]] = defaultdict(list)
    for one in rows.select_related("project").order_by("project__slug"):
        found[one.user_id].append(one)
    return found


def _access(user: User, memberships: Mapping[int, list[Membership]]) -> str:
    """Return each project with the role in it, and what that role may do in three words."""
    rows = [(badge(one.role), one.project.slug, WORDS.get(one.role, "")) for one in memberships.get(user.pk, ())]
    if user.is_superuser or any(group.name == OPERATORS for group in user.groups.all()):
        rows.insert(0, (badge("operator", "warn"), "", OPERATOR_WORDS))
    line = '<li>{} <strong>{}</strong> <span class="sg-help">{}</span></li>'
    listed = format_html('<ul class="sg-plain-list">{}</ul>', format_html_join("", line, rows))
    return listed if rows else "nothing yet"


def _membership_links(user: User, memberships: Mapping[int, list[Membership]]) -> str:
    """Return the memberships with links to change them, and a link to add another."""
    rows = [
        (one.project.slug, badge(one.role), WORDS.get(one.role, ""), link_to(one, "Change"))
        for one in memberships.get(user.pk, ())
    ]
    line = '<li><strong>{}</strong> {} <span class="sg-help">{}</span> {}</li>'
    url = f"{reverse('admin:access_membership_add')}?{urlencode({'person': user.get_username()})}"
    listed = format_html('<ul class="sg-plain-list">{}</ul>', format_html_join("", line, rows)) if rows else "none, "
    return format_html("{}{}", listed, links([("Add a membership", url)]))


def _devices(users: Sequence[User], request: HttpRequest) -> set[int]:
    """Return the keys of the users with a second factor."""
    return set(TOTPDevice.objects.filter(user__in=users, confirmed=True).values_list("user_id", flat=True))


def _second_factor(user: User, devices: set[int]) -> str:
    off = badge("off", "warn" if settings.REQUIRE_SECOND_FACTOR else "")
    return badge("on", "good") if user.pk in devices else off


@admin.register(User)
class UserAdmin(DjangoUserAdmin, EditPage):
    """
    The page "People". Operators manage accounts. Owners see the members of their projects, and manage memberships.

    The audit says who gave which access to whom.
    """

    change_form_before_template = None
    list_before_template = "admin/sluicegate/people.html"
    form = UserForm
    add_form = PersonCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "access", "account", "has_second_factor", "last_seen"]
    list_filter = ["is_active"]
    search_fields = ["username", "email", "first_name", "last_name"]
    # Django's widget of two boxes with arrows has parts without accessible names.
    filter_horizontal = []
    readonly_fields = ["memberships", "has_second_factor", "last_seen", "joined"]
    columns = (
        Column(name="access", title="May do", read=_memberships, show=_access),
        Column(name="memberships", title="Memberships", read=_memberships, show=_membership_links),
        Column(
            name="has_second_factor", title="Second factor", read=_devices, show=_second_factor, order="second_factor"
        ),
    )
    row_actions = (RESET_SECOND_FACTOR,)
    fieldsets = [
        (None, {"fields": ["username", "password", ("first_name", "last_name"), "email"]}),
        ("Access", {"fields": ["is_active", "is_staff", "operator", "is_superuser", "memberships"]}),
        ("Sign-in", {"fields": ["has_second_factor", "last_seen", "joined"]}),
    ]
    owners_fieldsets = [(None, {"fields": ["username", "memberships"]})]
    empty = ("Nobody is a member of your projects yet.", "")
    scope = RowScope(
        members=_of_owners, limits=_but_oneself, roles={"view": OWNER, "add": None, "change": None, "delete": None}
    )
    is_published = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        devices = TOTPDevice.objects.filter(user=OuterRef("pk"), confirmed=True)
        return super().get_queryset(request).prefetch_related("groups").annotate(second_factor=Exists(devices))

    def get_list_display(self, request: HttpRequest) -> list[str]:
        return self.list_display if is_operator(request.user) else ["username", "access"]

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        return self.search_fields if is_operator(request.user) else ["username"]

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        return self.list_filter if is_operator(request.user) else []

    def get_fieldsets(self, request: HttpRequest, obj: User | None = None) -> list[Any]:
        if obj is not None and not is_operator(request.user):
            return self.owners_fieldsets
        hidden = () if request.user.is_superuser else ("is_superuser",)
        shown = super().get_fieldsets(request, obj)
        return [(name, {**it, "fields": [one for one in it["fields"] if one not in hidden]}) for name, it in shown]

    def get_form(self, request: HttpRequest, obj: User | None = None, **options: Any) -> type[forms.ModelForm]:
        form = super().get_form(request, obj, **options)
        if issubclass(form, UserForm):
            form.user = user_of(request)
        return form

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        shown = {
            "title": "People",
            "roles": [*WORDS.items(), ("operator", OPERATOR_WORDS)],
            "may_add_member": is_member(request.user, OWNER),
            "sees_everybody": is_operator(request.user),
        }
        return super().changelist_view(request, {**shown, **(extra_context or {})})

    @display(description="Account")
    def account(self, user: User) -> str:
        if not user.is_active:
            return badge("inactive", "bad")
        return badge("may log in", "good") if user.is_staff else badge("may not log in", "warn")

    @display(description="Last log-in", ordering="last_login")
    def last_seen(self, user: User) -> str:
        return instant(user.last_login)

    @display(description="Created", ordering="date_joined")
    def joined(self, user: User) -> str:
        return instant(user.date_joined)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Return the response of the page that sets a user's password, and record a change of it in the audit."""
        if not is_operator(request.user):
            raise PermissionDenied
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

    def save_related(self, request: HttpRequest, form: Any, formsets: list[Any], change: bool) -> None:
        if "operator" in form.cleaned_data:
            set_operator(form.instance, form.cleaned_data["operator"])
        super().save_related(request, form, formsets, change)

    def recorded(self, obj: User) -> Recorded:
        return Recorded(obj)
