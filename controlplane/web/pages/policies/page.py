from dataclasses import replace
from functools import partial
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.actions import copy_policy, remove_limit
from controlplane.objects.policies.models import Limit, Policy
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from controlplane.web.kit.dialogs import Asking, Done, Page, RowAction, in_one_change
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.from_files import ManagedPage
from controlplane.web.kit.parts import BELOW, Panel
from controlplane.web.kit.site import StackedInline, badge, change_url, instant, link_to, links
from controlplane.web.kit.state import state_of
from controlplane.web.kit.tags import tag
from controlplane.web.pages.drafts.views import (
    OPEN_DRAFTS,
    SAVE_DRAFT,
    drafted,
    open_draft,
    settle_draft,
    shown_as_draft,
    stays,
)
from controlplane.web.pages.near import USAGE_DAY
from controlplane.web.pages.policies.columns import HOLDERS, LAST_HOUR, LIMITS, LIMITS_BY_NAME, OVERRIDDEN, PUBLISHED
from controlplane.web.pages.policies.filters import MANAGED_FILTER, MODE_FILTER, TRAFFIC_FILTER
from controlplane.web.pages.policies.limit_admin import LimitAdmin  # noqa: F401  (registers the page of limits)
from controlplane.web.pages.policies.limit_form import LimitForm, LimitFormSet, fieldsets
from controlplane.web.pages.policies.policy_form import METERED_REQUESTS, CopyDialog, PolicyForm
from controlplane.web.pages.review.page import ENFORCE_VIEW, VERDICTS, reach_view, settle_policy
from controlplane.web.pages.review.views import reviewed
from controlplane.web.scope.rows import RowScope
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY
from enforcement.store_calls.instances import GLOBAL, UNSUPPORTED_REASONS, reasons_against

INSTANCES_SHOWN = 5
TRY_REQUEST = Panel[Policy](name="try_request", template="admin/sluicegate/try_request.html", place=BELOW)


def _linked(instances: list[Instance]) -> str:
    """Return links to the first of some instances, and the number of the others."""
    shown = links([(instance.pk, change_url(instance)) for instance in instances[:INSTANCES_SHOWN]])
    more = len(instances) - INSTANCES_SHOWN
    return format_html("{} and {} more", shown, more) if more > 0 else shown


class LimitInline(StackedInline):
    model = Limit
    form = LimitForm
    formset = LimitFormSet
    extra = 0
    max_num = MAX_LIMITS_PER_POLICY
    template = "admin/sluicegate/limits.html"
    fieldsets = fieldsets()

    def get_formset(self, request: HttpRequest, obj: Policy | None = None, **options: Any) -> type[LimitFormSet]:
        # A form may delete all limits and add as many. Django would build and check 1,032 of them.
        return super().get_formset(request, obj, absolute_max=2 * MAX_LIMITS_PER_POLICY, **options)


def _copy(tx: OpenChange, policy: Policy, given: dict[str, Any]) -> Done:
    copied = copy_policy(tx, policy, given["slug"], given["name"])
    return Done(f"{copied} is a copy. Change its limits, then give it to tokens.", to=copied)


def _may_copy(page: Page, request: HttpRequest, object_id: str) -> bool:
    """Return whether the user may change the policy, because the copy belongs to the same project, or to all."""
    policy = page.get_queryset(request).filter(pk=unquote(object_id)).first()
    return policy is not None and page.has_change_permission(request, policy)


def _may_apply(page: Page, request: HttpRequest, object_id: str) -> bool:
    """Return whether the user is an operator, because the global policy concerns every project."""
    return is_operator(request.user)


COPY = RowAction(
    name="copy",
    title="Copy",
    icon="content_copy",
    may=_may_copy,
    answer=in_one_change(_copy),
    dialog=Asking(
        title="Copy this policy",
        description="The copy has the same limits. No token and no project uses it yet.",
        submit="Copy the policy",
        form=CopyDialog,
    ),
)
APPLY_EVERYWHERE = RowAction(
    name="apply_everywhere",
    title="Apply to every request",
    icon="public",
    may=_may_apply,
    answer=partial(reach_view, everywhere=True),
)
APPLY_WHERE_ATTACHED = RowAction(
    name="apply_where_attached",
    title="Stop applying everywhere",
    icon="public_off",
    may=_may_apply,
    answer=partial(reach_view, everywhere=False),
)


@admin.register(Policy)
class PolicyAdmin(ManagedPage):
    list_display = [
        *("slug", "limits_described", "mode", "last_hour", "reach", "holders", "overridden"),
        *("managed", "published"),
    ]
    list_filter = [TRAFFIC_FILTER, MODE_FILTER, ("project", RowFilter), MANAGED_FILTER]
    search_fields = ["slug", "name"]
    autocomplete_fields = ["project"]
    readonly_fields = ["reach", "holders", "refused_by", "version", "changed"]
    # Its project is shown by "reach". It does not change, because tokens of other projects may use the policy already.
    fieldsets = [
        ("Name", {"fields": ["slug", "name", "description"], "classes": ["collapse", "sg-named"]}),
        METERED_REQUESTS,
        ("Use", {"fields": ["reach", "holders", "refused_by", "version", "changed"]}),
    ]
    add_fieldsets = [(None, {"fields": ["slug", "name", "description", "project"]}), METERED_REQUESTS]
    scope = RowScope(paths=("project_id",), shared=True)
    columns = (LIMITS, LIMITS_BY_NAME, LAST_HOUR, HOLDERS, OVERRIDDEN, PUBLISHED)
    form = PolicyForm
    asked_name = str
    steps, settle = (drafted, reviewed), (settle_draft, settle_policy)
    inlines = [LimitInline]
    panels = (VERDICTS, SAVE_DRAFT, TRY_REQUEST, replace(USAGE_DAY, place=BELOW))
    list_panels, views = (OPEN_DRAFTS,), (ENFORCE_VIEW,)
    row_actions = (COPY, APPLY_EVERYWHERE, APPLY_WHERE_ATTACHED)
    empty = (
        "A policy is a named list of limits. It is attached to tokens and projects, or applies to every request.",
        "Add a policy",
    )

    class Media:
        js = ["controlplane/limits.js"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Policy]:
        return super().get_queryset(request).select_related("project").prefetch_related("limits")

    def get_fieldsets(self, request: HttpRequest, obj: Policy | None = None) -> list[Any]:
        fieldsets = super().get_fieldsets(request, obj)
        if obj and not self.has_change_permission(request, obj):
            fieldsets = [("Limits", {"fields": ["limits_by_name"]}), *fieldsets]
        if request.user.has_perm("fleet.view_instance"):
            return fieldsets
        hidden = "refused_by"
        return [(name, {**it, "fields": [one for one in it["fields"] if one != hidden]}) for name, it in fieldsets]

    def get_form(self, request: HttpRequest, obj: Policy | None = None, **options: Any) -> type[PolicyForm]:
        form = super().get_form(request, obj, **options)
        form.is_for_members = not is_operator(request.user)
        return form

    @display(description="Mode")
    def mode(self, policy: Policy) -> SafeString | str:
        """Return whether the limits are enforced."""
        modes = {limit.mode for limit in policy.limits.all()}
        if not modes:
            return tag("no limits", "remove")
        if modes == {"shadow"}:
            return tag("in shadow", "visibility", "shadow", "It denies nothing, and counts what it would deny.")
        return tag("part in shadow", "rule") if "shadow" in modes else tag("enforced", "shield", "good")

    @display(description="Managed by")
    def managed(self, policy: Policy) -> SafeString | str:
        if not policy.managed_by:
            return "by hand"
        return tag("from files", "description", title=policy.managed_by)

    def deletion(self, request: HttpRequest, object_id: str, context: dict[str, Any]) -> HttpResponse:
        return super().deletion(request, object_id, {"stays": stays(self.key_of(object_id)), **context})

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], **options: Any) -> HttpResponse:
        context |= shown_as_draft(request)
        return super().render_change_form(request, context, **options)

    def get_inlines(self, request: HttpRequest, obj: Policy | None) -> list[type[LimitInline]]:
        """Return the forms of limits for those who may change them. Others read what the limits do."""
        return self.inlines if obj is None or self.has_change_permission(request, obj) else []

    @display(description="Applies to")
    def reach(self, policy: Policy) -> str:
        if policy.is_global:
            return badge("every request", "warn")
        return link_to(policy.project, f"{policy.project} only") if policy.project else "its tokens and projects"

    @display(description="Refused by")
    def refused_by(self, policy: Policy) -> str:
        """Return for each limit of the policy that instances cannot enforce why, and which instances these are."""
        # An instance goes on reporting for some minutes after the limit was changed or deleted.
        present = {
            (limit.name, reason) for limit in policy.limits.all() for reason in (*reasons_against(limit), GLOBAL)
        }
        rows = [
            (name, UNSUPPORTED_REASONS.get(reason, reason), _linked(instances))
            for name, reason, instances in heartbeats.refused(policy.slug)
            if reason not in UNSUPPORTED_REASONS or (name, reason) in present
        ]
        text = "<li>{} {}. Requests under it are refused by {}</li>"
        return format_html('<ul class="sg-limits">{}</ul>', format_html_join("", text, rows)) if rows else "no instance"

    @display(description="Changed", ordering="updated_at")
    def changed(self, policy: Policy) -> str:
        return instant(policy.updated_at)

    def save_formset(self, request: HttpRequest, form: ModelForm, formset: LimitFormSet, change: bool) -> None:
        formset.save(commit=False)
        for limit in formset.deleted_objects:
            remove_limit(state_of(request).tx, limit)
        limits = formset.in_order()
        for limit in limits:
            # Two limits may exchange their names, so each first gives up its name.
            Limit.objects.filter(pk=limit.pk).update(name=limit.pk)
        for position, limit in enumerate(limits):
            limit.position = position
            limit.save()

    def get_actions_detail(self, request: HttpRequest, object_id: str) -> list[Any]:
        """Return the actions of the page without the one that would change nothing, and none for a draft."""
        if open_draft(request).draft is not None:
            return []
        is_global = Policy.objects.filter(pk=self.key_of(object_id), is_global=True).exists()
        useless = "apply_everywhere" if is_global else "apply_where_attached"
        actions = super().get_actions_detail(request, object_id)
        return [offered for offered in actions if not offered.action_name.endswith(useless)]
