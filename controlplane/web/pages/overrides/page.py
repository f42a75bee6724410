"""The list and the form of overrides, and the page that raises a limit of a token or project."""

from dataclasses import replace
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, Q, QuerySet, Value
from django.db.models.functions import Concat
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.decorators import display

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.money import permits
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import is_operator, may, projects_of
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import many_overrides, run
from controlplane.releases.review.overriding import deletion_review, override_review
from controlplane.traffic.usage import units
from controlplane.web.kit.amounts import counts_nothing
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import EndsFilter, RowFilter
from controlplane.web.kit.forms import RecordedForm
from controlplane.web.kit.from_files import ManagedPage, with_mark
from controlplane.web.kit.parts import BulkAction, Filter
from controlplane.web.kit.site import actor_of, badge, change_url, instant, link_to
from controlplane.web.kit.state import state_of
from controlplane.web.pages.overrides.forms import ENDLESS, OverrideForm, RaiseForm
from controlplane.web.pages.overrides.links import raise_name, raise_url
from controlplane.web.pages.overrides.raising import Offers, offers
from controlplane.web.pages.review.override_admin import settle_deletion, settle_raise, settle_selected, with_holder
from controlplane.web.pages.review.views import reviewed, settle
from controlplane.web.scope.rows import RowScope, Visitor
from enforcement.model.metered import MONEY

# The name of the address that the form asks what a limit counts.
UNIT_NAME = "policies_override_unit"
HOLDERS: dict[str, type[Token] | type[Project]] = {"token": Token, "project": Project}


def with_state(rows: QuerySet[Override], state: str, request: HttpRequest) -> QuerySet[Override]:
    if state == "all":
        return rows
    return rows.exclude(ended_at=None) if state == "ended" else rows.filter(ended_at=None)


STATE_FILTER = Filter(
    name="state",
    title="state",
    choices=[("live", "in force"), ("ended", "ended"), ("all", "all")],
    usual="live",
    narrow=with_state,
)


def _of_own_limits(rows: QuerySet[Override], user: Visitor, kind: str) -> QuerySet[Override]:
    """Return the overrides of the user's projects. Members cannot change overrides of shared limits."""
    found = OF_PROJECTS.of_projects(rows, user, kind)
    return found if kind == "view" else found.exclude(limit__policy__project=None)


def _in_force(rows: QuerySet[Override], user: Visitor, kind: str) -> QuerySet[Override]:
    """Return those of *rows* that are in force. Those that have ended are history, which nobody changes."""
    return rows if kind == "view" else rows.filter(ended_at=None)


OF_PROJECTS = RowScope[Override](paths=("project_id", "token__project_id"))


def delete_many(page: EditPage, request: HttpRequest, rows: QuerySet[Override]) -> HttpResponse | None:
    """Delete some hundred at once, or start a job, of which the page that asks says so."""
    is_job = rows.count() > many_overrides.MOST_IN_A_REQUEST
    settle_selected(request, rows, is_job=is_job)
    if is_job and request.POST.get("post"):
        return _start_deletion(request, rows)
    response = delete_selected(page, request, rows)
    if isinstance(response, TemplateResponse):
        response.context_data = {**(response.context_data or {}), "is_job": is_job}
    return response


def _start_deletion(request: HttpRequest, rows: QuerySet[Override]) -> HttpResponse:
    concerned = Q(overrides__in=rows.order_by()) | Q(tokens__overrides__in=rows.order_by())
    actor, count = actor_of(request), rows.count()
    job = run.start(
        many_overrides.JOB,
        f"Delete {count:,} overrides",
        ids=rows.order_by("pk").values_list("pk", flat=True),
        projects=Project.objects.filter(concerned).distinct(),
        user=request.user,
        created_by=actor.name,
        channel=actor.channel,
        request_id=actor.request_id,
        reason=state_of(request).tx.reason,
    )
    return HttpResponseRedirect(change_url(job))


DELETE_SELECTED = BulkAction(
    name="delete_selected", title="Delete the selected overrides", kind="delete", answer=delete_many
)


@admin.register(Override)
class OverrideAdmin(ManagedPage):
    form = OverrideForm
    scope = replace(OF_PROJECTS, members=_of_own_limits, limits=_in_force)
    manager = "with_ended"
    steps = (reviewed,)
    list_display = ["limit", "holder", "only_for", "replaced", "ends", "reason", "created_by", "created"]
    list_filter = [STATE_FILTER, EndsFilter, ("project", RowFilter), ("token", RowFilter)]
    ends_column = "ends_at"
    bulk_actions = (DELETE_SELECTED,)
    most_at_once = many_overrides.MOST_IN_A_JOB
    list_select_related = ["limit__policy", "token", "project"]
    search_fields = [
        "reason",
        "partition",
        "shown_limit",
        "limit__name",
        "limit__policy__slug",
        "token__name",
        "project__slug",
    ]
    autocomplete_fields = ["limit", "token", "project"]
    readonly_fields = ["ends", "created_by", "created"]
    fieldsets = [
        (
            None,
            {
                "fields": ["limit", "token", "project", "partition"],
                "description": "A limit, and the token or the project. A budget that a team shares is raised for the "
                "project and the value of the team.",
            },
        ),
        (None, {"fields": ["quota", "burst", "reason", "ends_at"]}),
        ("Details", {"fields": ["ends", "created_by", "created"]}),
    ]
    add_fieldsets = fieldsets[:2]

    class Media:
        js = ["controlplane/overrides.js"]

    empty = (
        "An override gives one token or project another quota for one limit, with a reason and an end.",
        "Add an override",
    )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.raise_view)
        own = [
            path(f"raise/{kind}/<str:pk>/", view, {"kind": kind}, name=raise_name(model))
            for kind, model in HOLDERS.items()
        ]
        own.append(path("unit/", self.admin_site.admin_view(self.unit_view), name=UNIT_NAME))
        return [*own, *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Override]:
        """Return the overrides that the user may see, with those that have ended."""
        shown = Concat("limit__policy__slug", Value("/"), "limit__name")
        return super().get_queryset(request).annotate(shown_limit=shown)

    def choices(self, model: type[Model], user: Any, rows: QuerySet | None = None) -> QuerySet:
        """Return the limits of the projects' own policies, and the tokens and projects that the user may change."""
        if model is Token:
            return Token.objects.filter(project__in=projects_of(user, EDITOR))
        found = super().choices(model, user, rows)
        return found if model is not Limit or is_operator(user) else found.exclude(policy__project=None)

    def get_fieldsets(self, request: HttpRequest, obj: Override | None = None) -> list[Any]:
        """Return the fieldsets without the reason for a change, because an override has a reason of its own."""
        parts = [part for part in super().get_fieldsets(request, obj) if part[1]["fields"] != ["change_reason"]]
        if obj is None:
            text = '{} <a class="text-link" href="{}">Ask which limits apply to a request</a>'
            asked = format_html(text, parts[0][1]["description"], reverse("explain-denial"))
            parts[0] = (parts[0][0], {**parts[0][1], "description": asked})
        return parts

    def get_form(self, request: HttpRequest, obj: Override | None = None, **options: Any) -> type[RecordedForm]:
        form = super().get_form(request, obj, **options)
        form.may_be_endless = request.user.has_perm(ENDLESS)
        if "quota" in form.base_fields:
            form.base_fields["quota"].widget.attrs["data-unit-of"] = reverse(f"admin:{UNIT_NAME}")
        return form

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **options)
        if db_field.name == "limit" and not is_operator(request.user):
            text = "Must be a limit of a policy of the project. Only operators override what all projects share."
            field.error_messages["invalid_choice"] = text
        if db_field.name == "ends_at":
            zone = timezone.get_current_timezone_name()
            endless = " If empty, the override stays until it is deleted." if request.user.has_perm(ENDLESS) else ""
            field.help_text = f"In {zone}.{endless}"
        return field

    @display(description="Applies to", ordering="token__name")
    def holder(self, override: Override) -> str:
        return with_mark(link_to(override.token or override.project), override)

    @display(description="Only for", ordering="partition")
    def only_for(self, override: Override) -> str:
        if not override.partition:
            return "every value" if override.limit.partition_by else "—"
        unknown = set(override.values) - set(override.limit.partition_by)
        text = ", ".join(override.partition.split("\n"))
        return format_html("{} {}", text, badge("applies to nothing", "warn")) if unknown else text

    @display(description="Quota")
    def replaced(self, override: Override) -> str:
        unit = override.limit.unit
        return f"{permits(override.quota, unit)} instead of {permits(override.limit.quota, unit)}"

    @display(description="Ends", ordering="ends_at")
    def ends(self, override: Override) -> str:
        if override.ended_at:
            return format_html("{} {}", badge("ended"), instant(override.ended_at))
        return instant(override.ends_at) if override.ends_at else "when it is deleted"

    @display(description="Created", ordering="created_at")
    def created(self, override: Override) -> str:
        return instant(override.created_at)

    def save_model(self, request: HttpRequest, obj: Override, form: RecordedForm, change: bool) -> None:
        former = with_holder(obj.pk) if change else None
        super().save_model(request, obj, form, change)
        settle(request, override_review(former, obj, timezone.now()), obj.reason, own_reason=obj.reason)

    def deletion(self, request: HttpRequest, object_id: str, context: dict[str, Any]) -> HttpResponse:
        """Return the review of the deletion, in place of the page that asks, or delete the override."""
        if request.method != "POST":
            override = self.get_object(request, self.key_of(object_id))
            if override is not None and self.has_delete_permission(request, override):
                settle_deletion(request, deletion_review([override], timezone.now()), change_url(override))
        return super().deletion(request, object_id, context)

    def delete_model(self, request: HttpRequest, obj: Override) -> None:
        settle_deletion(request, deletion_review([obj], timezone.now()), change_url(obj))
        super().delete_model(request, obj)

    def save_row(self, request: HttpRequest, obj: Override, form: RecordedForm) -> None:
        save_override(state_of(request).tx, obj)

    def record(self, tx: OpenChange, obj: Override, before: dict[str, Any] | None) -> None:
        """Do nothing, because save_override() has recorded the change."""

    def raise_view(self, request: HttpRequest, pk: str, kind: str) -> HttpResponse:
        """Return the page that raises a limit of a token or project, or raise it, or the review of what that lowers."""
        return reviewed(self, request, pk, partial(self._raise_view, request, pk, kind))

    def _raise_view(self, request: HttpRequest, pk: str, kind: str) -> HttpResponse:
        holder, now = self._holder(request, kind, pk), timezone.now()
        offered = offers(holder, now)
        if not is_operator(request.user):
            without_shared(offered)
        form = RaiseForm(
            request.POST or None,
            holder=holder,
            offered=offered,
            now=now,
            zone=timezone.get_current_timezone(),
            may_be_endless=request.user.has_perm(ENDLESS),
        )
        idle = units.idle(offer.limit.unit for offer in offered.rows)
        for offer in offered.rows:
            offer.counts_nothing = counts_nothing(offer.limit.unit) if offer.limit.unit in idle else ""
        if request.method == "POST" and form.is_valid() and self._raise(request, form):
            return HttpResponseRedirect(change_url(holder))
        return self.page(
            request,
            "overrides/raise.html",
            title=f"Raise a limit of {holder}",
            holder=holder,
            kind=kind,
            offered=offered,
            form=form,
            back=change_url(holder),
            zone=timezone.get_current_timezone_name(),
            project_url=self._url_of_project(request, holder),
            asking_url=f"{reverse('explain-denial')}?token={holder.pk}" if isinstance(holder, Token) else "",
        )

    def unit_view(self, request: HttpRequest) -> JsonResponse:
        """Return, as JSON, whether the limit that the query names counts money. The form asks when one is chosen."""
        limits = self.admin_site.get_model_admin(Limit).get_queryset(request)
        limit = limits.filter(pk=request.GET.get("limit", "")).first()
        if limit is None:
            raise Http404("There is no such limit.")
        return JsonResponse({"is_money": limit.unit == MONEY})

    def _holder(self, request: HttpRequest, kind: str, pk: str) -> Token | Project:
        """Return the token or project of an address. Raises Http404 for one of a project that the user may not see."""
        page = admin.site.get_model_admin(HOLDERS[kind])
        holder = page.get_queryset(request).filter(pk=self.key_of(pk)).first()
        if holder is None:
            raise Http404(f"There is no such {kind}.")
        project = holder.project_id if isinstance(holder, Token) else holder.pk
        if not (may(request.user, EDITOR, project) and self.has_add_permission(request)):
            raise PermissionDenied
        return holder

    def _raise(self, request: HttpRequest, form: RaiseForm) -> bool:
        """Save the override, tell the user how that went, and return whether it is saved."""
        override, former = form.override(), form.former
        try:
            with self.changing(request, override.reason) as tx:
                save_override(tx, override)
                settle_raise(request, former, override)
                quota = permits(override.quota, override.limit.unit)
                self.message_user(request, f"{override.limit} is raised to {quota}.", messages.SUCCESS)
        except ValidationError as exc:
            for name, errors in exc.message_dict.items():
                form.add_error(name if name in form.fields else None, errors)
            return False
        return True

    @staticmethod
    def _url_of_project(request: HttpRequest, holder: Token | Project) -> str:
        """Return the address of the page that raises the limits of a token's project, or an empty string."""
        return raise_url(holder.project) if isinstance(holder, Token) else ""


def without_shared(offered: Offers) -> None:
    """Move the limits that all projects share to those that are raised elsewhere, because only operators raise them."""
    shared = {offer.limit.policy for offer in offered.rows if offer.limit.policy.project_id is None}
    offered.rows = [offer for offer in offered.rows if offer.limit.policy not in shared]
    offered.elsewhere = [(policy, "shared") for policy in shared] + offered.elsewhere
