"""The page that explains why a request was denied."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.changes.words.describe import amount
from controlplane.core.money import permits
from controlplane.core.optional import COUNTERS, USAGE, optional
from controlplane.objects.people.roles import EDITOR, VIEWER
from controlplane.objects.people.scope import is_operator, may
from controlplane.objects.policies.models import Policy
from controlplane.operations.explain import live_counters, words
from controlplane.operations.explain.answer import Explanation, Line, Source, explain
from controlplane.operations.explain.question import Case, Reach, Unanswerable, masked, of_decision, of_token, secret_in
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.heartbeats import is_live
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from controlplane.web.kit.forms import InstantInput, RulesField
from controlplane.web.kit.site import badge, change_url, link_to, list_url
from controlplane.web.kit.tags import tag
from controlplane.web.kit.times import exact
from controlplane.web.pages.near import reach_of
from controlplane.web.pages.overrides.links import raise_url
from controlplane.web.scope.views import permission_required
from enforcement.model.limit_fields import attribute
from enforcement.model.matching import check_attributes, is_label

# The word, the symbol and the kind of each result.
RESULTS = {
    "denied": ("denied", "block", "bad"),
    "also_denied": ("denied in that minute", "block", "bad"),
    "would_deny": ("would be denied", "visibility", "shadow", "It is in shadow, so it denied nothing."),
    "passed": ("had room", "check_circle", "good"),
    "no_match": ("no match", "remove"),
    "unknown": ("not known", "help"),
}
GROUPS = {"global": "Everything", "project": "Project", "anonymous": "Requests without a token", "token": "Token"}
TITLE = "Explain a denial"
# Denials of the sample that the page shows to whoever has no decision id. The page of the sample has the others.
LATEST, NEWEST = 10, 200


class ValuesField(RulesField):
    """Attributes of a request, one on each line, such as ``model = gpt-4o``."""

    kind = "attribute"
    line = "ip = 203.0.113.24"

    def read(self, rule: str) -> str:
        return rule


class QuestionForm(forms.Form):
    """The form of a question: a decision id, or a token with what is known of its request."""

    decision = forms.CharField(required=False, max_length=200, label="Decision id")
    token = forms.CharField(required=False, max_length=200, widget=UnfoldAdminTextInputWidget, label="Token")
    at = forms.DateTimeField(required=False, widget=InstantInput, label="Time")
    request = forms.CharField(
        required=False, max_length=2000, widget=UnfoldAdminTextInputWidget, label="Method and path"
    )
    attributes = ValuesField(required=False, label="Other attributes")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("decision", "token"):
            self.fields[name].widget.attrs |= {"autocomplete": "off", "spellcheck": "false"}
        # The theme's own input is too narrow for an id.
        self.fields["decision"].widget.attrs["class"] = "sg-input"
        hints = {"token": "Id, prefix, name or secret", "request": "POST /v1/chat/completions"}
        for name, hint in hints.items():
            self.fields[name].widget.attrs["placeholder"] = hint

    def clean_at(self) -> datetime | None:
        at: datetime | None = self.cleaned_data["at"]
        if at and at > timezone.now():
            raise ValidationError("Must not be in the future.")
        return at

    def clean_attributes(self) -> dict[str, str]:
        attributes: dict[str, str] = self.cleaned_data["attributes"]
        try:
            check_attributes(attributes)
        except ValueError as exc:
            raise ValidationError(str(exc).partition(": ")[2].capitalize()) from exc
        if labels := [name for name in attributes if is_label(name)]:
            raise ValidationError(f"Must not name a label, which the token has, got {labels[0]}.")
        return attributes

    def clean_request(self) -> dict[str, str]:
        """Return the attributes ``method`` and ``path``, as far as they are given."""
        text = self.cleaned_data["request"].strip()
        method, _, path = text.rpartition(" ")
        path = path if path.startswith("/") else ""
        method = (method if path else text).strip()
        if method and not (method.isascii() and method.isalpha()):
            raise ValidationError('Must be a method, a path that begins with "/", or both, such as: GET /v1/models')
        return {name: value for name, value in (("method", method.upper()), ("path", path)) if value}

    def clean(self) -> dict[str, Any]:
        given = self.cleaned_data
        if not self.errors and bool(given["decision"].strip()) == bool(given["token"].strip()):
            self.add_error("decision", "Give a decision id or a token, one of the two.")
        return given

    def case(self, reach: Reach, now: datetime) -> Case:
        """Return the case that a valid form asks for, or raise Unanswerable."""
        given = self.cleaned_data
        known = {**given["attributes"], **given["request"]}
        if decision := given["decision"].strip():
            return of_decision(decision, reach, known)
        return of_token(given["token"].strip(), given["at"] or now, reach, known)


@permission_required(VIEWER)
def explain_view(request: HttpRequest) -> HttpResponse:
    """
    Return the page with the form and, for a decision in the address or anything in a body, the explanation.

    Only ids may be in an address, as secrets would stay in logs and in the browser's history.
    """
    asked = request.POST.dict() if request.method == "POST" else _in_address(request)
    # A secret may be pasted into the wrong field. Only that of the token is read, and none is shown again.
    form = QuestionForm({name: text if name == "token" else masked(text) for name, text in asked.items()} or None)
    found = _found(form, reach_of(request)) if form.is_bound and form.is_valid() else None
    context = {**admin.site.each_context(request), "title": TITLE, "form": _without_secret(form)}
    context["zone_help"] = f"In the time zone {timezone.get_current_timezone_name()}. If empty, now."
    if found:
        context |= shown(found, is_operator(request.user)) | {"raise_url": _raise_url(request, found)}
    elif not form.is_bound:
        context |= {"latest": latest(reach_of(request)), "denials_url": list_url(DeniedRequest)}
    response = TemplateResponse(request, "admin/sluicegate/explain.html", context)
    response["Cache-Control"] = "no-store"
    return response


explain_view.optional_source, explain_view.read_only = COUNTERS, True


@optional(USAGE, lambda reach: [])
def latest(reach: Reach) -> list[dict[str, Any]]:
    """
    Return denials of the last day that the asker may see, to choose one from: the newest of each token and limit.

    They are among the newest of the sample, so that a page reads few rows of many.
    """
    rows = DeniedRequest.objects.filter(at__gt=timezone.now() - timedelta(days=1))
    rows = rows if reach.everything else rows.filter(project_id__in=reach.projects.values("pk"))
    newest: dict[tuple[str, ...], DeniedRequest] = {}
    for row in rows[:NEWEST]:
        newest.setdefault((row.project_id, row.token_id, row.policy_id, row.limit_name, row.reason), row)
    found = list(newest.values())[:LATEST]
    tokens = reach.tokens.in_bulk({row.token_id for row in found})
    projects = reach.projects.in_bulk({row.project_id for row in found})
    policies = Policy.objects.in_bulk({row.policy_id for row in found})
    return [
        {
            "at": row.at,
            "url": f"{reverse('explain-denial')}?{urlencode({'decision': row.decision})}",
            "token": tokens.get(row.token_id) or row.token_id or "no token",
            "project": projects.get(row.project_id, ""),
            "reason": row.reason.replace("_", " ") if row.reason != "limited" else "",
            "policy": policies.get(row.policy_id),
            "limit": row.limit_name,
            "request": " ".join(row.attributes.get(name, "") for name in ("method", "path")).strip(),
        }
        for row in found
    ]


def _in_address(request: HttpRequest) -> dict[str, str]:
    """Return what an address may ask: a decision id or the id of a token. Anything else in it is ignored."""
    given = {name: request.GET.get(name, "") for name in ("decision", "token")}
    return {"decision": given["decision"]} if given["decision"] else _token_id(given["token"])


def _token_id(text: str) -> dict[str, str]:
    return {"token": text} if text.startswith("tok_") else {}


def _found(form: QuestionForm, reach: Reach) -> Explanation | None:
    now = timezone.now()
    try:
        case = form.case(reach, now)
    except Unanswerable as exc:
        form.add_error(exc.field, exc.reason)
        return None
    return explain(case, reach, now, live_counters.client())


def _without_secret(form: QuestionForm) -> QuestionForm:
    """Return the form, in which the field of the token is empty if it had a secret, so that no page shows it."""
    if form.is_bound and secret_in(form.data.get("token", "")):
        form.data = {**form.data, "token": ""}
    return form


def shown(found: Explanation, everything: bool) -> dict[str, Any]:
    """Return the values that the template shows."""
    case = found.case
    return {
        "found": found,
        "lead": words.lead(found),
        "sentences": " ".join(words.context(found)),
        "present": words.present(found),
        "changed": words.changed(found.decided) if found.decided else "",
        "reply": words.reply(found),
        "groups": _groups(found, everything),
        "matching": sum(line.match.matches == "yes" for line in found.lines),
        "who": link_to(case.token, case.token.name) if case.token else case.who,
        "project": link_to(case.project),
        "usage_url": _usage_url(case),
        "instance": _instance(found),
        "changes": [link_to(revision, str(revision.number)) for revision in found.changes],
        "revision_then": _revision(case.revision),
        "revision_now": _revision(found.revision_now),
        "everything": everything,
    }


def _revision(number: int) -> SafeString | str:
    return link_to(Revision(number=number), str(number)) if number else "none"


def _instance(found: Explanation) -> SafeString | str:
    if found.instance is None:
        return found.case.facts.instance if found.case.facts else ""
    state = badge("live", "good") if is_live(found.instance, found.now) else badge("not live", "warn")
    return format_html("{} {}", link_to(found.instance), state)


def _raise_url(request: HttpRequest, found: Explanation) -> str:
    """Return where the user may raise the limit that denied, or an empty string."""
    case, decided = found.case, found.decided
    if case.facts is None or case.facts.reason not in ("limited", "cost_exceeds_capacity"):
        return ""
    holders = {"token": case.token, "project": case.project, "anonymous": case.project}
    holder = holders.get(decided.match.scope) if decided and case.project else None
    return raise_url(holder) if holder and may(request.user, EDITOR, case.project.pk) else ""


def _usage_url(case: Case) -> str:
    if case.token:
        return list_url(UsageRow, f"?period=minute&of=limits&token_id={case.token.pk}")
    return list_url(UsageRow, f"?period=minute&of=limits&project_id={case.project.pk}") if case.project else ""


def _groups(found: Explanation, everything: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of the table under the title of their scope."""
    known = Policy.objects.in_bulk({line.match.policy_id for line in found.lines})
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in found.lines:
        row = _row(line, known.get(line.match.policy_id), everything)
        groups.setdefault(line.match.scope, []).append(row)
    slug = f" {found.case.project.slug}" if found.case.project else ""
    return [(GROUPS[scope] + (slug if scope == "project" else ""), rows) for scope, rows in groups.items()]


def _row(line: Line, policy: Policy | None, everything: bool) -> dict[str, Any]:
    match, limit = line.match, line.match.limit
    hidden = match.scope == "global" and not everything
    return {
        "line": line,
        "limit": limit,
        "policy": format_html('<a class="text-link" href="{}">{}</a>', change_url(policy), policy.slug)
        if policy
        else match.policy,
        "quota": amount(limit),
        "notes": list(filter(None, [_partitions(match), source(line.source), match.why])),
        "then": _then(line, hidden),
        "now": _now(line, hidden),
        "reset": words.duration(-(-line.now.reset_ms // 1000)) if line.now and line.now.reset_ms else "",
        "result": tag(*RESULTS[line.result]),
        "css": {"denied": "sg-row-hit", "no_match": "sg-row-off"}.get(line.result, ""),
    }


def _partitions(match: Any) -> str:
    names = [attribute(name) for name in match.limit.partition_by]
    return f"for each {' and '.join(names)}" if names else ""


def source(found: Source | None) -> str:
    """Return where a quota comes from, in words."""
    if found is None or found.kind == "policy":
        return "by the policy"
    until = f" until {exact(found.ends_at)}" if found.ends_at else " without an end"
    return f"override{until}" + (f", {found.by}: “{found.reason}”" if found.by else "")


def _then(line: Line, hidden: bool) -> str:
    if line.match.matches == "no":
        return "–"
    if hidden:
        return "shared by all projects"
    if line.used is not None:
        return (
            f"{permits(line.used, line.match.limit.unit)} of {permits(line.match.limit.quota, line.match.limit.unit)}"
        )
    if line.counted is None:
        return "no longer kept"
    return f"{line.counted['allowed']:,} allowed, {line.counted['denied']:,} denied"


def _now(line: Line, hidden: bool) -> str:
    unit = line.match.limit.unit
    if line.now is not None:
        return f"{permits(line.now.used, unit)} of {permits(line.now.quota, unit)}"
    if line.quota_now is None:
        return "does not apply any more"
    return "shared by all projects" if hidden else "–"
