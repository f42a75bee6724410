"""The pages of memberships, on which operators and owners say who may do what in a project."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminRadioSelectWidget, UnfoldAdminTextInputWidget

from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import ROLES, WORDS
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.forms import RecordedForm
from controlplane.web.kit.site import badge, instant, link_to, list_url
from controlplane.web.scope.rows import BY_OWNERS, RowScope


class MembershipForm(RecordedForm):
    person = forms.CharField(
        max_length=150,
        widget=UnfoldAdminTextInputWidget,
        help_text="The user name of the account. Operators create accounts.",
    )
    role = forms.ChoiceField(
        choices=[(role, f"{role}: {WORDS[role]}") for role in ROLES], widget=UnfoldAdminRadioSelectWidget
    )

    class Meta:
        model = Membership
        fields = ["project", "role"]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.instance._state.adding:
            del self.fields["person"]

    def clean_person(self) -> str:
        """Set the user of the membership, whom a list would show with all other users of the installation."""
        name = self.cleaned_data["person"].strip()
        user = User.objects.filter(username=name).first()
        if user is None:
            raise ValidationError("There is no account with this name. Ask an operator to create it.")
        self.instance.user = user
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        project = cleaned.get("project")
        if self.instance._state.adding and project and cleaned.get("person"):
            present = Membership.objects.filter(user=self.instance.user, project=project).first()
            if present:
                self.add_error("person", f"Is already {present.role} of {project}. Change that membership.")
        return cleaned


@admin.register(Membership)
class MembershipAdmin(EditPage):
    form = MembershipForm
    list_display = ["person_name", "project_link", "role_badge", "words", "since"]
    list_display_links = ["person_name"]
    list_filter = [("project", RowFilter), ("role", ChoicesDropdownFilter)]
    list_select_related = ["user", "project"]
    search_fields = ["user__username", "project__slug"]
    autocomplete_fields = ["project"]
    readonly_fields = ["person_name", "project_link", "since"]
    add_fieldsets = [(None, {"fields": ["person", "project", "role"]})]
    fieldsets = [(None, {"fields": ["person_name", "project_link", "role", "since"]})]
    empty = ("A membership says what a person may do in one project.", "Add a member")
    scope = RowScope(paths=("project_id",), roles=BY_OWNERS)
    is_published = False

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"role": ROLES[0], **super().get_changeform_initial_data(request)}

    @display(description="Person", ordering="user__username")
    def person_name(self, membership: Membership) -> str:
        return membership.user.get_username()

    @display(description="Project", ordering="project__slug")
    def project_link(self, membership: Membership) -> str:
        return link_to(membership.project)

    @display(description="Role", ordering="role")
    def role_badge(self, membership: Membership) -> str:
        return badge(membership.role)

    @display(description="May do")
    def words(self, membership: Membership) -> str:
        return WORDS.get(membership.role, "nothing, because this version does not know the role")

    @display(description="Since", ordering="created_at")
    def since(self, membership: Membership) -> str:
        return instant(membership.created_at)

    def response_post_save_add(self, request: HttpRequest, obj: Membership) -> HttpResponse:
        """Lead to the page "People", from which the user came."""
        return HttpResponseRedirect(list_url(User))

    response_post_save_change = response_post_save_add
