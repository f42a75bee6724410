"""The pages of the admin: each list with its sorts, filters and searches, each form, and the rest by its address."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.test import RequestFactory
from django.urls import reverse

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.usage.models import DeniedRequest, MeteredRow, UsageRow
from tests.million import data
from tests.million.measuring import POSTED

# What people type: the start of few and of many names, a part, two letters, a label, an id, and what finds nothing.
SEARCHES = {
    Token: [
        "edge-70",
        "edge",
        "dge-7",
        "ed",
        "team=team-7",
        "team",
        data.token(70),
        "sg_live_ab",
        "nothing",
        "project-7",
    ],
    AuditEntry: ["user-7", "edge-70", "update", "ticket 70", "ed", data.token(70), "req-" + f"{70:032d}", "nothing"],
    Policy: ["edge-70", "edge", "ed", "nothing"],
    Project: ["project-7", "pr", "nothing"],
}
OTHER_SEARCHES = ["7", "nothing"]
# Filters whose values are typed.
TYPED = {
    Token: [f"project__id__exact={data.project(0)}", f"policy__id__exact={data.policy(0)}", "label=team%3Dteam-7"],
    AuditEntry: ["actor=user-7", f"object_type=token&object_id={data.token(70)}", "at_from=2026-01-01T00:00"],
    UsageRow: ["token_id=edge-70", "project_id=project-0", "label=team%3Dteam-7", "unit=requests", "policy_id=edge-0"],
    MeteredRow: ["token_id=edge-70", "project_id=project-0", "label=team%3Dteam-7", "model=model-7"],
    DeniedRequest: ["token_id=edge-70", "project_id=project-0", "reason=quota"],
}
AUTOCOMPLETED = [
    ("projects", "token", "project"),
    ("projects", "token", "policy"),
    ("projects", "project", "policy"),
    ("policies", "override", "limit"),
    ("policies", "override", "token"),
]
# Those of no model.
PLAIN = ["/admin/", "/admin/?range=24h", "/admin/?range=7d", "/admin/search/?s=edge", "/admin/search/?s=edge-70"]
PLAIN += ["/admin/search/?s=nothing", "/admin/search/?s=ed"]
PLAIN += ["/admin/projects/token/labels/"]
# Files, until their first line.
FILES = ["policies/auditentry/export.csv", "policies/auditentry/export.jsonl"]
FILES += ["usage/usagerow/export.csv", "usage/meteredrow/export.csv"]
PLAIN += [f"/admin/{name}" for name in FILES]
PLAIN += [f"/admin/publishing/revision/?{query}" for query in ("q=edge-70", "q=user-7", "q=nothing", "show=tokens")]


def pages() -> Iterator[str]:
    """Yield the address of each page."""
    yield from PLAIN
    for name in ("near-limit", "explain-denial"):
        yield reverse(name)
    for query in (f"token={data.token(3)}", "decision=dec-3"):
        yield f"{reverse('explain-denial')}?{query}"
    yield from statements()
    yield from deletions()
    yield f"{reverse('admin:policies_policy_enforce', args=[quote(data.policy(0))])}?limit={data.SHADOW}"
    for kind, pk in (("token", data.token(3)), ("project", data.project(0))):
        yield f"/admin/policies/override/raise/{kind}/{pk}/"
    for model, page in admin.site._registry.items():
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        yield from (f"{url}{query}" for query in lists(model, page))
        yield from forms(model)
    for app, model, field in AUTOCOMPLETED:
        for term in ("", "edge", "edge-70", "ed", "nothing"):
            yield f"/admin/autocomplete/?app_label={app}&model_name={model}&field_name={field}&term={term}"


def statements() -> Iterator[str]:
    """Yield the pages of statements of a project, a token and a policy, and of a project grouped otherwise."""
    url = reverse("admin:statements_monthrow_changelist")
    project = "project=project-0"
    for query in (f"token={data.token(3)}", "policy=edge-0", project, f"{project}&group=model"):
        yield f"{url}?{query}"
    yield f"{url}?{project}&group=label&label=team"


def deletions() -> Iterator[str]:
    """Yield the pages that delete what most depends on, and those that confirm an action on many rows."""
    for model, pk in ((Project, data.project(0)), (Policy, data.policy(0)), (Token, data.token(3))):
        yield reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_delete", args=[quote(pk)])
    tokens, policies = "/admin/projects/token/", "/admin/policies/policy/"
    ticked = f"index=0&_selected_action={data.token(3)}"
    for action in ("revoke", "policy", "expiry", "label", "delete"):
        yield f"{tokens}?q=edge-70{POSTED}action={action}_selected&{ticked}&select_across=1"
    # A tenth of all tokens, as many as a job may have: of many projects, and of one.
    yield f"{tokens}?ends=soon{POSTED}action=revoke_selected&{ticked}&select_across=1"
    yield f"{tokens}?q=partner{POSTED}action=revoke_selected&{ticked}&select_across=1"
    yield f"{policies}?q=edge-7{POSTED}action=delete_selected&index=0&select_across=1&_selected_action={data.policy(0)}"


def lists(model: type[Model], page: Any) -> Iterator[str]:
    """Yield the queries of the lists of a model: none, a later page, each sort, filter and search."""
    yield ""
    yield "?p=3"
    columns = [None, *page.list_display]
    for number, column in enumerate(columns):
        if number and _is_sorted(model, page, column):
            yield f"?o={number}"
            yield f"?o=-{number}"
    yield from (f"?{query}" for query in _choices(page))
    yield from (f"?{query}" for query in TYPED.get(model, ()))
    if page.search_fields:
        yield from (f"?q={term.replace('=', '%3D')}" for term in SEARCHES.get(model, OTHER_SEARCHES))


def _is_sorted(model: type[Model], page: Any, column: str) -> bool:
    if any(field.name == column for field in model._meta.fields):
        return True
    return bool(getattr(getattr(page, column, None), "admin_order_field", None))


def _choices(page: Any) -> Iterator[str]:
    """Yield the choices of the filters that offer some."""
    for one in page.list_filter:
        kind = one if isinstance(one, type) else None
        if kind is None or not hasattr(kind, "lookups"):
            continue
        made = kind(RequestFactory().get("/"), {}, page.model, page)
        yield from (f"{kind.parameter_name}={value}" for value, _ in made.lookup_choices)


def forms(model: type[Model]) -> Iterator[str]:
    """Yield the addresses that add a row, and that change and show one, which is the one with most to show."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    yield reverse(f"{name}_add")
    biggest = {Project: data.project(0), Policy: data.policy(0), Token: data.token(70)}
    pk = biggest.get(model) or model._base_manager.order_by("-pk").values_list("pk", flat=True).first()
    if pk is not None:
        yield reverse(f"{name}_change", args=[quote(pk)])
        # As a redirect of the page of most rows leads there.
        yield f"/admin/policies/auditentry/?object_type={model._meta.model_name}&object_id={pk}"
