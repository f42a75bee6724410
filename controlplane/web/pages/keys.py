"""The pages of management keys."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.decorators import display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from controlplane.objects.keys.actions import issue_management_key, revoke_management_key
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.keys.networks import as_stored
from controlplane.objects.keys.scopes import PRESETS, SCOPES
from controlplane.objects.people.roles import OWNER
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.web.kit.dialogs import Asking
from controlplane.web.kit.forms import RecordedForm, WordsField
from controlplane.web.pages.tokens.credentials import CREDENTIAL_SEARCH, CredentialAdmin, revoking
from controlplane.web.pages.tokens.secret_search import BY_SECRET_VIEW
from controlplane.web.scope.rows import BY_OWNERS, KINDS, RowScope, Visitor


def key_snippets(request: HttpRequest, secret: str) -> list[tuple[str, str, str]]:
    """Return examples of how to use a management key, each with its id, title and code."""
    url = request.build_absolute_uri("/api/v1/projects")
    return [("curl", "curl", f'curl -H "Authorization: Bearer {secret}" {url}')]


class ManagementKeyForm(RecordedForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope, "everything (*)" if scope == "*" else scope) for scope in SCOPES],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What a program may do with this key. Choose only the scopes that it needs.",
    )
    networks = WordsField(
        required=False,
        help_text="From where the key may be used, such as 192.0.2.0/24, 2001:db8::/32. If empty, from everywhere.",
    )

    def clean_networks(self) -> list[str] | None:
        return self.cleaned_data["networks"] or None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if "projects" in cleaned:  # otherwise the field reports its own error
            ManagementKey(all_projects=cleaned.get("all_projects", False)).check_reach(cleaned["projects"])
        return cleaned


def _of_owners(rows: QuerySet[ManagementKey], user: Visitor, kind: str) -> QuerySet[ManagementKey]:
    """Return the keys that are limited to projects of the owner. A key of other projects besides is not his."""
    return rows.within(projects_of(user, OWNER).values("pk"))


REVOKE = revoking(
    revoke_management_key,
    Asking(
        title="Revoke this key",
        description="The REST API refuses it from now on. This cannot be undone.",
        submit="Revoke key",
    ),
    may=lambda page, request, object_id: page.permits(request, "change", object_id),
)


@admin.register(ManagementKey)
class ManagementKeyAdmin(CredentialAdmin):
    form = ManagementKeyForm
    change_form_before_template = "admin/sluicegate/key_presets.html"
    list_display = ["name", "shown_prefix", "state", "scope_list", "network_list", "last_used", "ends", "created"]
    autocomplete_fields = ["projects"]
    add_fieldsets = [(None, {"fields": ["name", "scopes", "all_projects", "projects", "networks", "expires_at"]})]
    fieldsets = [
        (
            None,
            {
                "fields": [
                    *("name", "state", "shown_prefix", "scope_list", "project_list", "network_list"),
                    *("ends", "last_used", "created"),
                ]
            },
        )
    ]
    search, views = CREDENTIAL_SEARCH, (BY_SECRET_VIEW,)
    issued = ("name", "scopes", "all_projects", "projects", "networks", "expires_at")
    empty = ("A management key is the credential of a program that uses the REST API.", "Create a key")
    scope = RowScope(members=_of_owners, roles=BY_OWNERS)
    # A key cannot be changed after it was issued. It can only be revoked.
    kinds = frozenset(KINDS) - {"change"}
    row_actions = (REVOKE,)
    issue = staticmethod(issue_management_key)
    snippets = staticmethod(key_snippets)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Return the values of an empty form, with the scopes of the preset that the address names."""
        scopes = PRESETS.get(request.GET.get("preset", ""), ())
        return {**super().get_changeform_initial_data(request), "scopes": list(scopes)}

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        presets = {"presets": PRESETS, "preset": request.GET.get("preset")}
        return super().add_view(request, form_url, {**presets, **(extra_context or {})})

    def get_exclude(self, request: HttpRequest, obj: ManagementKey | None = None) -> list[str]:
        return [] if is_operator(request.user) else ["all_projects"]

    def get_fieldsets(self, request: HttpRequest, obj: ManagementKey | None = None) -> list[Any]:
        """Return the fields. Only operators create a key that works for every project."""
        hidden = self.get_exclude(request, obj)
        shown = super().get_fieldsets(request, obj)
        return [(name, {**it, "fields": [one for one in it["fields"] if one not in hidden]}) for name, it in shown]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return {}

    @display(description="Scopes")
    def scope_list(self, key: ManagementKey) -> str:
        return "everything" if "*" in key.scopes else ", ".join(key.scopes)

    @display(description="Used from")
    def network_list(self, key: ManagementKey) -> str:
        shown = as_stored(key.networks)
        return "everywhere" if shown is None else ", ".join(shown) or "nowhere"

    @display(description="Projects")
    def project_list(self, key: ManagementKey) -> str:
        return "all" if key.all_projects else ", ".join(p.slug for p in key.projects.all()) or "none, all are deleted"
