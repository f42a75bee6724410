"""Policies and overrides as members see and change them, beside the operators of the platform."""

from typing import Any

from django.contrib.admin.views.main import ChangeList
from django.db.models import Exists, Model, OuterRef, QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import DropdownFilter

from controlplane.core.tables.counting import CappedCount, as_capped
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Token
from controlplane.web.kit.page import page_of
from controlplane.web.scope.rows import RowScope


class ModeFilter(DropdownFilter):
    """A filter that shows the policies of which a limit is in shadow, or of which one is enforced."""

    title = "mode of a limit"
    parameter_name = "mode"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("shadow", "in shadow"), ("enforce", "enforced")]

    def queryset(self, request: HttpRequest, rows: QuerySet[Policy]) -> QuerySet[Policy]:
        mode = self.value()
        return rows.filter(Exists(Limit.objects.filter(policy=OuterRef("pk"), mode=mode))) if mode else rows


class PolicyScope:
    """A mixin for the pages of policies. Members read the shared ones, and how much of it their projects use."""

    scope = RowScope(paths=("project_id",), shared=True)

    def get_form(self, request: HttpRequest, obj: Policy | None = None, **options: Any) -> Any:
        form = super().get_form(request, obj, **options)
        form.is_for_members = not is_operator(request.user)
        return form

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        policies = changelist.result_list = list(changelist.result_list)
        self._count_for(request, policies)
        Policy.count_uses(policies, None if is_operator(request.user) else projects_of(request.user))
        self._count_overrides(request, policies)
        return changelist

    def _count_overrides(self, request: HttpRequest, policies: list[Policy]) -> None:
        """Set ``raised`` to the number of the overrides of each policy that the user may see."""
        seen = page_of(Override).scope.narrow(Override.objects.all(), request.user)
        count = CappedCount(seen.filter(limit__policy=OuterRef("pk")))
        rows = Policy.objects.filter(pk__in=[policy.pk for policy in policies]).order_by()
        found = dict(rows.annotate(found=count).values_list("pk", "found"))
        for policy in policies:
            policy.raised = as_capped(found.get(policy.pk, 0))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Policy | None:
        policy = super().get_object(request, object_id, from_field)
        self._count_for(request, [policy] if policy else [])
        return policy

    @staticmethod
    def _count_for(request: HttpRequest, policies: Any) -> None:
        if not is_operator(request.user):
            for policy in policies:
                policy.counted_in = projects_of(request.user)


class OverrideScope:
    """A mixin for the pages of overrides. A member could otherwise lift what operators set for all projects."""

    def choices(self, model: type[Model], user: Any, rows: QuerySet | None = None) -> QuerySet:
        """Return the limits of the projects' own policies, and the tokens and projects that the user may change."""
        if model is Token:
            return Token.objects.filter(project__in=projects_of(user, EDITOR))
        found = super().choices(model, user, rows)
        return found if model is not Limit or is_operator(user) else found.exclude(policy__project=None)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **options)
        if db_field.name == "limit" and not is_operator(request.user):
            text = "Must be a limit of a policy of the project. Only operators override what all projects share."
            field.error_messages["invalid_choice"] = text
        return field
