"""The list of reservations, and the page on which one is settled by hand."""

from datetime import timedelta
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.core.money import quantity
from controlplane.core.optional import COUNTERS
from controlplane.core.text import PRINTABLE
from controlplane.objects.people.roles import EDITOR, VIEWER
from controlplane.objects.people.scope import is_operator, may, projects_of
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.reservations import actions, listing, recording
from controlplane.traffic.reservations.models import LOST, OPEN, RELEASED, SETTLED, SETTLED_KEPT, UNSETTLED, Reservation
from controlplane.web.kit.amounts import CostsField
from controlplane.web.kit.forms import DurationField
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import list_url
from controlplane.web.scope.rows import RowScope
from controlplane.web.scope.views import check
from enforcement.metering.charges import Counts
from enforcement.model.keys import GLOBAL_TAG
from enforcement.model.sizes import MAX_NUMBER
from enforcement.store.client import STORE_ERRORS

STATES = (
    ("", "open and lost"),
    (OPEN, "open"),
    (LOST, "lost"),
    (SETTLED, "settled"),
    (RELEASED, "given back"),
)
A_PAGE = 50


class FilterForm(forms.Form):
    """The filter of the list. It finds names only in *projects*, the query of those that the user may see."""

    state = forms.ChoiceField(choices=STATES, required=False, widget=UnfoldAdminSelectWidget)
    project = forms.CharField(required=False, max_length=63, widget=UnfoldAdminTextInputWidget, label="Project")
    token = forms.CharField(required=False, max_length=100, widget=UnfoldAdminTextInputWidget, label="Token")
    older = DurationField(required=False, label="Older than")

    def __init__(self, *args: Any, projects: QuerySet[Project], **options: Any) -> None:
        super().__init__(*args, **options)
        self.projects = projects

    def clean_older(self) -> int | None:
        """Return the least age in seconds, or None for any."""
        older: int | None = self.cleaned_data["older"]
        if older is not None and older > SETTLED_KEPT.total_seconds():
            raise forms.ValidationError(f"Must be at most {SETTLED_KEPT.days} days. Older ones are not kept.")
        return older

    def clean_project(self) -> str:
        """Return the id of the project that is named by its slug or id, or an empty string."""
        wanted = self.cleaned_data["project"].strip()
        found = self.projects.filter(slug=wanted).first() if wanted else None
        if wanted and found is None and not wanted.startswith("proj_"):
            raise forms.ValidationError(f"There is no project {wanted!r}.")
        return found.pk if found else wanted

    def clean_token(self) -> str:
        """Return the id of the token that is named by its name or id, or an empty string."""
        wanted = self.cleaned_data["token"].strip()
        if not wanted or wanted.startswith("tok_"):
            return wanted
        named = Token.objects.filter(name=wanted, project__in=self.projects)
        ids = list(named.values_list("pk", flat=True)[:2])
        if len(ids) != 1:
            raise forms.ValidationError(f"Must be an id: {'several tokens have' if ids else 'no token has'} this name.")
        return ids[0]


class SettleForm(forms.Form):
    """How a reservation is settled: by tokens, by costs, or by giving it back."""

    WAYS = (
        ("usage", "Charge the tokens that the provider has reported"),
        ("costs", "Charge these costs"),
        ("release", "Give back everything"),
    )
    LABELS = {
        "input": "Input tokens",
        "cached_input": "Cached input tokens",
        "cache_write": "Cache write tokens",
        "output": "Output tokens",
        "calls": "Calls of the provider's tools",
    }

    way = forms.ChoiceField(choices=WAYS, widget=forms.RadioSelect, label="Settlement")
    reason = forms.CharField(max_length=500, validators=[PRINTABLE], widget=UnfoldAdminTextInputWidget)

    def __init__(self, *args: Any, reservation: Reservation, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, label in self.LABELS.items():
            self.fields[name] = forms.IntegerField(
                min_value=0,
                max_value=MAX_NUMBER,
                required=False,
                widget=UnfoldAdminIntegerFieldWidget,
                label=label,
            )
        self.fields["costs"] = CostsField(required=False, label="Costs by unit")
        metered, (release, text) = bool(reservation.model), self.WAYS[-1]
        ways = (*self.WAYS[:-1], (release, f"{text} but the request, which was made")) if metered else self.WAYS[1:]
        self.fields["way"].choices = ways
        self.fields["way"].initial = ways[0][0]

    def clean(self) -> dict[str, Any]:
        given = self.cleaned_data
        if given.get("way") == "costs" and not given.get("costs") and "costs" not in self.errors:
            self.add_error("costs", "Name at least one unit with its cost, such as: tokens = 1200")
        if given.get("way") == "usage":
            for name in ("input", "output"):
                if given.get(name) is None and name not in self.errors:
                    self.add_error(name, "This field is required. 0 is a number, too.")
        return given

    def order(self) -> actions.SettlementOrder:
        """Return what a valid form asks for."""
        given = self.cleaned_data
        if given["way"] == "usage":
            return actions.SettlementOrder(usage=Counts(**{name: given[name] or 0 for name in self.LABELS}))
        return actions.SettlementOrder(given["costs"] if given["way"] == "costs" else None)


@admin.register(Reservation)
class ReservationAdmin(PartsPage):
    """Reads the store, and shows of SQL what the store no longer lists."""

    optional_source = COUNTERS
    scope = RowScope(paths=("project_id",))

    def get_urls(self) -> list[URLPattern]:
        own = path("<str:pk>/settle/", self.admin_site.admin_view(self.settle_view), name="reservations_settle")
        return [own, *super().get_urls()]

    def has_settle_permission(self, request: HttpRequest, row: Reservation) -> bool:
        """Return whether the user may settle a reservation, which may be one that SQL does not have."""
        return may(request.user, EDITOR, row.project_id)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        form, rows, truncated, away = self._filter(request), [], False, False
        if not form.is_bound or form.is_valid():
            try:
                rows, truncated = self._rows(request, form.cleaned_data if form.is_bound else {})
            except STORE_ERRORS:
                away = True
        page = Paginator(rows, A_PAGE).get_page(request.GET.get("page"))
        query = request.GET.copy()
        query.pop("page", None)
        return self.page(
            request,
            "reservations.html",
            title="Reservations",
            form=form,
            page=page,
            rows=self._described(request, page.object_list),
            truncated=truncated,
            away=away,
            query=query.urlencode(),
            sees_instances=is_operator(request.user),
        )

    @staticmethod
    def _filter(request: HttpRequest) -> FilterForm:
        return FilterForm(request.GET or None, projects=projects_of(request.user))

    def _rows(self, request: HttpRequest, given: dict[str, Any]) -> tuple[Any, bool]:
        state, now = given.get("state") or "", timezone.now()
        projects = self._projects(request, given.get("project"))
        older = timedelta(seconds=given["older"]) if given.get("older") else None
        query = listing.ReservationQuery([state] if state else UNSETTLED, projects, given.get("token", ""), older)
        if state not in (SETTLED, RELEASED):
            found = listing.unsettled(query, now)
            return found.rows, found.truncated
        rows = Reservation.objects.filter(state=state)
        rows = rows if projects is None else rows.filter(project_id__in=projects)
        rows = rows.filter(token_id=query.token) if query.token else rows
        return rows.filter(at__lte=now - older) if older else rows, False

    @staticmethod
    def _projects(request: HttpRequest, chosen: str | None) -> list[str] | None:
        """Return the ids of the projects whose reservations are listed, or None for those of every project."""
        if is_operator(request.user):
            return [chosen] if chosen else None
        seen = projects_of(request.user)
        return list((seen.filter(pk=chosen) if chosen else seen).values_list("pk", flat=True))

    def _described(self, request: HttpRequest, rows: Any) -> list[dict[str, Any]]:
        """Return what the pages show of reservations, and whether the user may settle each."""
        for row in (shown := described(rows)):
            reservation = row["reservation"]
            row["may_settle"] = reservation.may_settle and self.has_settle_permission(request, reservation)
        return shown

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **options: Any) -> HttpResponse:
        """Lead to the page that shows one reservation."""
        return HttpResponseRedirect(settle_url(self.key_of(object_id)))

    def settle_view(self, request: HttpRequest, pk: str) -> HttpResponse:
        """Return the page of one reservation, or settle it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        # The id begins with that of the project, unless the reservation is one of a global limit only.
        if (tag := pk.partition(".")[0]) != GLOBAL_TAG:
            check(request, VIEWER, tag)
        try:
            row, found = listing.read(pk)
            check(request, EDITOR if request.method == "POST" else VIEWER, row.project_id)
        except (listing.Unknown, listing.Unreadable) as exc:
            raise Http404("There is no such reservation. It may have been settled.") from exc
        except STORE_ERRORS:
            messages.error(request, "The store is unavailable. Nothing was changed.")
            return HttpResponseRedirect(list_url(Reservation))
        form = SettleForm(request.POST or None, reservation=row)
        if request.method == "POST" and form.is_valid() and self._settle(request, pk, form):
            return HttpResponseRedirect(list_url(Reservation))
        (shown,) = self._described(request, [row])
        is_lost = found is not None and row.state == LOST and bool(row.model)
        until = recording.final_at(row, found.record, recording.lost_spans()) if is_lost else row.settled_until
        return self.page(
            request,
            "reservation.html",
            title="Reservation",
            row=shown,
            until=until,
            form=form,
            sees_instances=is_operator(request.user),
            currency=settings.CURRENCY,
        )

    def _settle(self, request: HttpRequest, pk: str, form: SettleForm) -> bool:
        """Settle a reservation, tell the user how that went, and return whether the page of it is done with."""
        try:
            with self.changing(request, form.cleaned_data["reason"]) as tx:
                actions.settle(tx, pk, form.order(), charges_global=is_operator(request.user))
        except actions.InvalidOrder as exc:
            form.add_error(exc.field if exc.field in form.fields else "way", str(exc))
            return False
        except (actions.AlreadySettled, listing.Unknown):
            messages.error(request, "The reservation is settled already. Nothing was changed.")
        except actions.AddsToGlobal:
            form.add_error("way", "Must not correct a limit that all projects share. An operator may do that.")
            return False
        except actions.SettlementUnfinished:
            text = "The settlement is recorded. Its counters will be corrected as soon as the store is available."
            messages.warning(request, text)
        except STORE_ERRORS:
            messages.error(request, "The store is unavailable. Nothing was changed.")
            return False
        else:
            messages.success(request, "The reservation is settled, and its counters are corrected.")
        return True


def settle_url(pk: str) -> str:
    """Return the address of the page of one reservation."""
    return reverse("admin:reservations_settle", args=[pk])


def described(rows: Any) -> list[dict[str, Any]]:
    """Return what the pages show of reservations, in new dictionaries."""
    rows, now = list(rows), timezone.now()
    projects = Project.objects.in_bulk({row.project_id for row in rows})
    tokens = Token.objects.in_bulk({row.token_id for row in rows})
    return [
        {
            "reservation": row,
            "project": projects.get(row.project_id),
            "token": tokens.get(row.token_id),
            "age": max(now - row.at, timedelta()),
            "url": settle_url(row.pk),
            "amounts": [_amount(amount) for amount in row.amounts],
            "changes": [_amount(one, signed=True) for one in row.order.get("changes", [])],
        }
        for row in rows
    ]


def _amount(one: dict[str, Any], *, signed: bool = False) -> dict[str, str]:
    """Return the name of a limit and the permits as people read them."""
    sign = "+" if signed and one["permits"] > 0 else ""
    return {"limit": f"{one['policy']}/{one['limit']}", "permits": sign + quantity(one["permits"], one["unit"])}
