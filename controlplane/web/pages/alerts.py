"""The pages of alert rules, and the list of their events."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from controlplane.objects.people.scope import is_operator
from controlplane.operations.alerts.models import RESOLVED, AlertEvent, AlertRule
from controlplane.operations.alerts.rule_kinds import KINDS
from controlplane.operations.webhooks.models import Delivery
from controlplane.web.kit.amounts import AmountField
from controlplane.web.kit.edit_page import EditPage
from controlplane.web.kit.filters import RowFilter
from controlplane.web.kit.forms import DurationField, RecordedForm, WordsField
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import badge, instant, link_to, table
from controlplane.web.scope.rows import RowScope


class ThresholdsField(WordsField):
    """Numbers of per cent with commas between them, such as ``50, 80, 100``."""

    widget = UnfoldAdminTextInputWidget

    def to_python(self, value: Any) -> list[Any]:
        words = super().to_python((value or "").replace("%", " "))
        return [int(word) if word.isascii() and word.isdigit() and len(word) < 5 else word for word in words]


class AlertRuleForm(RecordedForm):
    thresholds = ThresholdsField(
        required=False,
        label="Thresholds in per cent",
        help_text="For shares, such as 50, 80, 100. If empty, the usual ones.",
    )
    amount = AmountField(
        required=False, label="Amount of money in a month", help_text="For what is spent, such as 500.00."
    )
    within_seconds = DurationField(
        required=False,
        label="Time to look ahead or back",
        help_text="Ahead for what ends or runs out, such as 7 days. Back for denials, such as 5 minutes.",
    )
    cool_down_seconds = DurationField(
        label="Cool-down",
        initial=3_600,
        help_text="Time to wait before the next event about the same subject, unless that reaches a higher threshold.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if "recovery" in self.fields:  # who may only read the rule has no fields
            self.fields["recovery"].help_text = "There is no such message about a token that has ended."

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if cleaned.get("thresholds") == [] and cleaned.get("kind") in KINDS:
            cleaned["thresholds"] = list(KINDS[cleaned["kind"]].thresholds)
        if {"destinations", "kind"} <= cleaned.keys():  # otherwise the field reports its own error
            rule = AlertRule(project=cleaned.get("project"), kind=cleaned["kind"])
            rule.check_destinations(cleaned["destinations"])
        return cleaned


@admin.register(AlertRule)
class AlertRuleAdmin(EditPage):
    form = AlertRuleForm
    asked_name = str
    list_display = ["name", "whose", "watches", "told", "state", "last_event"]
    list_filter = [("project", RowFilter), ("kind", ChoicesDropdownFilter), "active"]
    list_select_related = ["project"]
    search_fields = ["name"]
    autocomplete_fields = ["project"]
    readonly_fields = ["events"]
    add_fieldsets = [
        (None, {"fields": ["name", "project", "kind", "limit", "thresholds", "amount", "within_seconds"]}),
        ("Who is notified", {"fields": ["destinations", "cool_down_seconds", "recovery", "active"]}),
    ]
    fieldsets = [*add_fieldsets, ("Use", {"fields": ["events"]})]
    scope = RowScope(paths=("project_id",))
    empty = ("A rule says of what an alert is made, such as 80 % of a limit, and who is told.", "Add an alert rule")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """Return a box for each destination: they are few, and a list that is searched is none for screen readers."""
        options["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
        return super().formfield_for_manytomany(db_field, request, **options)

    def get_queryset(self, request: HttpRequest) -> QuerySet[AlertRule]:
        return super().get_queryset(request).prefetch_related("destinations")

    def get_fieldsets(self, request: HttpRequest, obj: AlertRule | None = None) -> list[Any]:
        if obj is None:
            return [*self.add_fieldsets, (None, {"fields": ["change_reason"]})]
        return super().get_fieldsets(request, obj)

    def formfield_for_choice_field(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        """Return the field without kinds that are about the whole installation, if the user is no operator."""
        if db_field.name == "kind" and not is_operator(request.user):
            options["choices"] = [(name, kind.words) for name, kind in KINDS.items() if not kind.everywhere]
        return super().formfield_for_choice_field(db_field, request, **options)

    @display(description="Project", ordering="project")
    def whose(self, rule: AlertRule) -> str:
        return link_to(rule.project) if rule.project else "all projects"

    @display(description="Alert if", ordering="kind")
    def watches(self, rule: AlertRule) -> str:
        return KINDS[rule.kind].words if rule.kind in KINDS else rule.kind

    @display(description="Destinations")
    def told(self, rule: AlertRule) -> str:
        return (
            ", ".join(str(destination) for destination in rule.destinations.all()) or "nobody, events are listed only"
        )

    @display(description="State", ordering="active")
    def state(self, rule: AlertRule) -> str:
        return badge("active", "good") if rule.active else badge("inactive")

    @display(description="Last event")
    def last_event(self, rule: AlertRule) -> str:
        last = rule.events.first()
        return instant(last.at) if last else "—"

    @display(description="Events")
    def events(self, rule: AlertRule) -> str:
        rows = [(instant(event.at), link_to(event), condition(event)) for event in rule.events.all()[:10]]
        return table(("When", "What", "State"), rows) if rows else "none yet"


def condition(event: AlertEvent) -> str:
    """Return the state of an event as a badge."""
    if event.state == RESOLVED:
        return badge("resolved", "good")
    return badge("fired") if event.resolved_at else badge("firing", "bad")


@admin.register(AlertEvent)
class AlertEventAdmin(PartsPage):
    list_display = ["title", "rule", "shown_state", "when"]
    list_filter = [("state", ChoicesDropdownFilter), ("rule", RowFilter), ("project", RowFilter)]
    list_select_related = ["rule"]
    search_fields = ["title"]
    fields = readonly_fields = ["title", "of_rule", "shown_state", "when", "facts", "messages"]
    # Only operators see what a rule without a project has found in a project.
    scope = RowScope(paths=("rule__project_id",))
    linked_filters = ("rule",)
    ends_with_owner = True
    empty = ("What the alert rules have found appears here.", "")

    @display(description="Rule")
    def of_rule(self, event: AlertEvent) -> str:
        return link_to(event.rule)

    @display(description="State", ordering="state")
    def shown_state(self, event: AlertEvent) -> str:
        return condition(event)

    @display(description="When", ordering="at")
    def when(self, event: AlertEvent) -> str:
        return instant(event.at)

    @display(description="Facts")
    def facts(self, event: AlertEvent) -> str:
        return table(("Name", "Value"), sorted(event.data.items())) if event.data else "none"

    @display(description="Messages")
    def messages(self, event: AlertEvent) -> str:
        rows = Delivery.objects.filter(message_id=event.pk).select_related("destination")
        found = [(str(row.destination), badge(row.state), row.result) for row in rows]
        return table(("Destination", "State", "Last attempt"), found) if found else "none"
