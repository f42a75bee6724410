"""The list of revisions in words, the page of one, and the page that undoes one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from unfold.decorators import display
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminTextareaWidget

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.change import Change
from controlplane.changes.words.entries import details, in_words
from controlplane.changes.words.words import lines_of
from controlplane.core.text import PRINTABLE
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import is_operator, may, projects_of
from controlplane.objects.policies.names import Names
from controlplane.operations.health.of_fleet import lost_now
from controlplane.operations.health.reached import reached, sentence
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.acknowledgements import lag_ms
from controlplane.releases.publishing.models import Revision
from controlplane.releases.publishing.rollback import rollback
from controlplane.releases.revisions import listing, undo
from controlplane.releases.revisions.links import object_urls
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance
from controlplane.web.kit.dialogs import Asking, RowAction
from controlplane.web.kit.forms import ReasonDialog
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import Column, Panel, View
from controlplane.web.kit.site import badge, change_url, done, instant, link_to, table
from controlplane.web.scope.rows import RowScope, Visitor

INSTANCES, SHOWN_INSTANCES = "fleet.view_instance", 200
CHOICES = (
    ("", "Policies, projects, overrides"),
    ("overrides", "Overrides"),
    ("tokens", "Tokens"),
    ("everything", "Everything"),
)


class ListForm(forms.Form):
    q = forms.CharField(required=False, max_length=200, validators=[PRINTABLE])
    show = forms.ChoiceField(choices=CHOICES, required=False)
    before = forms.IntegerField(required=False, min_value=1, max_value=10**18)
    since = forms.IntegerField(required=False, min_value=1, max_value=10**18)

    def query(self, entries: QuerySet[AuditEntry], all_entries: bool) -> listing.Query:
        """Return what a valid form asks for."""
        given = self.cleaned_data
        return listing.Query(given["show"], given["q"].strip(), given["before"], given["since"], entries, all_entries)


class UndoForm(forms.Form):
    seen = forms.CharField(max_length=32, widget=forms.HiddenInput)
    reason = forms.CharField(
        max_length=500, validators=[PRINTABLE], widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}), label="Reason"
    )


def _of_members(rows: QuerySet[Revision], user: Visitor, kind: str) -> QuerySet[Revision]:
    """Return those of *rows* that changed something which the user may see."""
    return rows.filter(number__in=listing.revisions_of(entries_for(user)))


@dataclass(frozen=True, slots=True)
class Story:
    """What the user may know of a revision: its author, its changes, and the address of its undo, if there is one."""

    row: listing.Row
    author: str
    undo_url: str


def story_of(request: HttpRequest, revision: Revision) -> Story:
    (row,) = listing.described([revision], entries_for(request.user), listing.ENTRIES_ON_A_PAGE)
    return Story(row, authors(row, request.user), undo_url(revision.number) if may_undo(row, request) else "")


def read_story(revisions: Sequence[Revision], request: HttpRequest) -> Story:
    """Return the story of the only one of *revisions*."""
    (revision,) = revisions
    return story_of(request, revision)


def read_fleet(revisions: Sequence[Revision], request: HttpRequest) -> Fleet:
    return heartbeats.fleet_now()


def what_changed(revision: Revision, story: Story) -> str:
    rows, names = [], Names.of(one.entry for one in story.row.entries)
    for one in story.row.entries:
        lines = details(one.entry, names)
        links = [link_to(one.entry, in_words(one.entry)), *[""] * (len(lines) - 1)]
        rows += [(link, line.what, line.old, line.new) for link, line in zip(links, lines, strict=True)]
    if story.row.more:
        rows.append((f"and {story.row.more:,} more, which the audit has", "", "", ""))
    return table(("Change", "Field", "Before", "After"), rows) if rows else contents(revision)


def runs_on(revision: Revision, fleet: Fleet) -> str:
    found = reached(revision, fleet, lost_now(timezone.now()))
    said = sentence(found, "runs an earlier one")
    after = f" The last of them had it after {listing.seconds(revision.lag_ms)}." if found.is_everywhere else ""
    mark = badge("live" if found.is_everywhere else "not everywhere", "good" if found.is_everywhere else "warn")
    return format_html("{} {}{}", mark, said, after if revision.lag_ms is not None else "")


def who_runs_what(revision: Revision, fleet: Fleet) -> str:
    rows = [(link_to(row), row.host, row.revision, _standing(row, revision), instant(row.seen_at)) for row in fleet]
    head = ("Instance", "Host", "Revision", "Compared with this one", "Last seen")
    if fleet.unknown:
        note = f"{fleet.unknown} These instances ran when it last answered."
        return format_html("<p>{}</p>{}", note, table(head, rows))
    return table(head, rows) if rows else "No instance is live."


def _roll_back(page: PartsPage, request: HttpRequest, form: ReasonDialog, object_id: str) -> HttpResponse:
    number = number_of(object_id)
    try:
        with page.changing(request, form.cleaned_data["reason"]) as tx:
            rollback(tx, number)
            if not tx.is_empty:
                page.message_user(request, f"Rolled back to revision {number}.", messages.SUCCESS)
        if tx.is_empty:
            same = f"Policies and projects are as they were at revision {number}."
            messages.warning(request, f"Nothing was changed. {same}")
    except ValidationError as exc:
        messages.error(request, f"Nothing was changed. {' '.join(exc.messages)}")
    return done(change_url(Revision(number=tx.revision or number)))


ROLL_BACK = RowAction(
    name="roll_back",
    title="Roll back to this revision",
    icon="history",
    variant=ActionVariant.DANGER,
    # A roll-back changes all projects.
    may=lambda page, request, object_id: is_operator(request.user),
    answer=_roll_back,
    dialog=Asking(
        title="Roll back to this revision",
        description="Everything that was changed later is changed back: policies with their limits, the policy "
        "of each project and the global policy, as a new revision. Newer policies and projects stay. Tokens, "
        "overrides and prices do not change. To change back only what this revision changed, undo it instead.",
        submit="Roll back",
    ),
)


@admin.register(Revision)
class RevisionAdmin(PartsPage):
    scope = RowScope(members=_of_members)
    fields = readonly_fields = [
        *("published", "epoch", "author", "channel", "what_changed"),
        *("runs_on", "who_runs_what", "documents"),
    ]
    columns = (
        Column(name="author", title="By", read=read_story, show=lambda revision, story: story.author),
        Column(name="what_changed", title="Changed", read=read_story, show=what_changed),
        Column(name="runs_on", title="Acknowledged by", read=read_fleet, show=runs_on),
        Column(name="who_runs_what", title="Instances", read=read_fleet, show=who_runs_what),
    )
    panels = (Panel(name="undo", template="admin/sluicegate/revisions/undo_link.html", answer=story_of),)
    row_actions = (ROLL_BACK,)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        form = ListForm(request.GET)
        rows: list[listing.Row] = []
        older: int | None = None
        if form.is_valid():
            rows, older = listing.rows_of(form.query(entries_for(request.user), is_operator(request.user)))
        urls = object_urls(one.of for row in rows for one in row.entries)
        link = request.GET.copy()
        link["before"] = str(older)
        return self.page(
            request,
            "revisions/list.html",
            title="Revisions",
            form=form,
            choices=CHOICES,
            rows=[shown(row, request, urls) for row in rows],
            older=older and f"?{link.urlencode()}",
            newest=newest(request) if request.user.has_perm(INSTANCES) else None,
            filtered=any(request.GET.get(name) for name in ("q", "show", "before", "since")),
        )

    def get_fields(self, request: HttpRequest, obj: Revision | None = None) -> list[str]:
        """Return the fields of the page. Hosts, and documents of all projects, are for those who may see all."""
        hidden = set() if request.user.has_perm(INSTANCES) else {"who_runs_what"}
        hidden |= set() if is_operator(request.user) else {"documents"}
        return [name for name in self.fields if name not in hidden]

    @display(description="Published", ordering="at")
    def published(self, revision: Revision) -> str:
        return instant(revision.published_at) if revision.published_at else badge("not published", "warn")

    @display(description="Published documents")
    def documents(self, revision: Revision) -> str:
        documents = revision.changes.get("documents", {}).items()
        return format_html_join(
            "",
            '<details class="sg-document"><summary>{}</summary><pre tabindex="0">{}</pre></details>',
            ((name_of((name, document)), json.dumps(document, indent=2)) for name, document in documents),
        )

    def get_actions_detail(self, request: HttpRequest, object_id: str) -> list[Any]:
        """Return the actions, none on the page of the last revision, which cannot be rolled back to."""
        past = object_id.isdecimal() and int(object_id) < publisher.last_revision()
        return super().get_actions_detail(request, object_id) if past else []

    def undo_view(self, request: HttpRequest, number: int) -> HttpResponse:
        """Return the page that says what an undo of a revision would do, or undo it."""
        revision = self.get_queryset(request).filter(number=number).first()
        if revision is None or not self.has_view_permission(request):
            raise Http404(f"There is no revision {number}.")
        change, entries = request.GET.get("change", ""), entries_for(request.user)
        form = UndoForm(request.POST or None)
        try:
            if request.method == "POST" and form.is_valid():
                return self._undo(request, revision, change, form)
            plan = undo.plan(undo.entries_to_undo(entries, revision, change))
        except undo.Changed as exc:
            plan = exc.plan
            messages.warning(request, "Something was changed meanwhile. Check again what the undo would do.")
        except ValidationError as exc:
            messages.error(request, f"Nothing was changed. {' '.join(exc.messages)}")
            return HttpResponseRedirect(change_url(revision))
        check(plan, request)
        urls, names = object_urls((one.kind, one.pk) for one in plan.objects), Names.of_change(plan)
        form.data = {**request.POST.dict(), "seen": plan.digest} if form.is_bound else form.data
        return self.page(
            request,
            "revisions/undo.html",
            title=f"Undo revision {number}",
            revision=revision,
            plan=plan,
            objects=[(one, urls.get((one.kind, one.pk)), lines_of(one, names)) for one in plan.objects],
            form=form,
            next=publisher.last_revision() + 1,
            later=Revision.objects.filter(number__gt=number).exists(),
            back=change_url(revision),
        )

    views = (View(path="<int:number>/undo/", name="undo", answer=undo_view),)

    def _undo(self, request: HttpRequest, revision: Revision, change: str, form: UndoForm) -> HttpResponse:
        """Undo a revision, and return a redirect to the list, whose first row is the new revision."""
        given, entries = form.cleaned_data, entries_for(request.user)
        with self.changing(request, given["reason"]) as tx:
            plan = undo.plan(undo.locked(entries, revision, change))
            check(plan, request)
            undo.apply(tx, plan, revision, given["seen"])
            self.message_user(request, f"Revision {revision.number} is undone.", messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:publishing_revision_changelist"))


def check(plan: Change, request: HttpRequest) -> None:
    """Raise PermissionDenied unless the user may change everything that the plan changes back."""
    if not all(may(request.user, EDITOR, project) for project in plan.projects):
        raise PermissionDenied


def entries_for(user: Any) -> QuerySet[AuditEntry]:
    """Return the audit entries that the user may see."""
    entries = AuditEntry.objects.all()
    return entries if is_operator(user) else entries.filter(project__in=projects_of(user).values("pk"))


def may_undo(row: listing.Row, request: HttpRequest) -> bool:
    """Return whether a list offers to undo a revision. The page of the undo checks each object."""
    if row.first is not None or row.undone_by or not row.entries:
        return False
    return all(may(request.user, EDITOR, one.entry.project or None) for one in row.entries)


def authors(row: listing.Row, user: Any) -> str:
    """Return who made a revision, for members only the authors of the changes that they may see."""
    if is_operator(user):
        return row.revision.by
    return ", ".join(dict.fromkeys(one.entry.actor for one in row.entries))


def undo_url(number: int) -> str:
    """Return the address of the page that undoes a revision."""
    return reverse("admin:publishing_revision_undo", args=[number])


def shown(row: listing.Row, request: HttpRequest, urls: dict[tuple[str, str], str]) -> dict[str, Any]:
    """Return what the list shows of a row, in a new dictionary."""
    revision = row.revision
    folded = f"?show=everything&since={row.first.number}&before={revision.number + 1}" if row.first else ""
    return {
        "row": row,
        "revision": revision,
        "url": change_url(revision),
        "entries": [(one, urls.get(one.of)) for one in row.entries],
        "by": authors(row, request.user),
        "contents": "" if row.entries or row.first else contents(revision),
        "reason": row.entries[0].entry.reason if row.entries else "",
        "lag": listing.seconds(revision.lag_ms),
        "everywhere": revision.instances is not None and revision.live_on == revision.instances > 0,
        "waiting": listing.seconds_since(revision.published_at or revision.at, timezone.now()),
        "undo": undo_url(revision.number) if may_undo(row, request) else "",
        "folded": folded,
    }


def newest(request: HttpRequest) -> dict[str, Any] | None:
    """Return how far the last revision has got, or None before the first."""
    revision, fleet = Revision.objects.defer("changes").first(), heartbeats.fleet_now()
    if revision is None:
        return None
    published = revision.published_at or revision.at
    having = [instance for instance in fleet if instance.revision >= revision.number]
    rows = [
        {"instance": one, "url": change_url(one), "has": one in having, "lag": listing.seconds(lag_ms(one, published))}
        for one in sorted(fleet, key=lambda one: (one.revision >= revision.number, one.pk))
    ]
    return {
        "revision": revision,
        "url": change_url(revision),
        "unknown": fleet.unknown,
        "count": len(having),
        "total": len(fleet),
        "rows": rows[:SHOWN_INSTANCES],
        "more": max(len(rows) - SHOWN_INSTANCES, 0),
        "behind": [row["instance"] for row in rows if not row["has"]][:3],
        "lag": listing.seconds(max((lag_ms(one, published) for one in having), default=None)) if fleet else "",
        "waiting": listing.seconds_since(published, timezone.now()),
        "published": instant(published),
    }


def number_of(object_id: str) -> int:
    """
    Return the number in the address of a revision.

    Raises:
        Revision.DoesNotExist: It is not a number.
    """
    if not object_id.isdecimal():
        raise Revision.DoesNotExist
    return int(object_id)


def _standing(instance: Instance, revision: Revision) -> str:
    if instance.revision == revision.number and instance.revision_at:
        lag = listing.seconds(lag_ms(instance, revision.published_at or revision.at))
        return badge(f"has it after {lag}", "good")
    if instance.revision >= revision.number:
        return badge("same or later", "good")
    return badge(f"{revision.number - instance.revision} behind", "warn")


def contents(revision: Revision) -> str:
    """Return what a revision without audit entries published, such as one of 0.2.0 or of the reconciler."""
    changes = revision.changes
    if changes.get("full"):
        return f"everything ({len(changes['documents'])} documents, {changes.get('token_count', 0)} tokens)"
    names = [*map(name_of, changes.get("documents", {}).items())]
    names += [f"token {token['prefix']}…" for token in changes.get("tokens", [])]
    names += ["a reset of counters"] * bool(changes.get("resets")) + ["prices"] * bool(changes.get("prices"))
    more = f" and {len(names) - listing.LINES_SHOWN:,} more" if len(names) > listing.LINES_SHOWN else ""
    return ", ".join(names[: listing.LINES_SHOWN]) + more or "—"


def name_of(document: tuple[str, Any]) -> str:
    """Return the name of a published document for people, with the slug that it had."""
    name, content = document
    kind, _, object_id = name.partition(":")
    if kind == "global":
        return "the global policy"
    if content is None:
        return f"{kind} {object_id} deleted"
    return f"{kind} {content.get('slug', object_id)}"
