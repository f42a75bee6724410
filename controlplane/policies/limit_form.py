"""The form of one limit, which is part of the form of its policy."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.forms.formsets import ManagementForm
from django.http import QueryDict
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.adminkit.amounts import PermitsField, UnitField, money_unit
from controlplane.adminkit.forms import DurationField, NumbersField, OneErrorForm, RulesField, WordsField
from controlplane.policies.describe import brief, sentence
from controlplane.policies.models import Limit, Policy
from enforcement.model.calendars import CALENDARS
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import DENY, MONEY

ALGORITHMS = {
    "fixed_window": "Fixed window — all at each start, so up to twice the quota around then; also by the calendar",
    "sliding_window": "Sliding window — cheap, never denies a client that keeps the pace, best for most limits",
    "sliding_log": "Sliding log — exact for each request, for small quotas",
    "token_bucket": "Token bucket — a steady rate with bursts",
    "concurrency": "Concurrency — a number of requests at the same time",
}
MODES = {"enforce": "Enforce — deny requests over the quota", "shadow": "Shadow — count and report, but never deny"}
CONSISTENCIES = {
    "strict": "Strict — exact, with one call to the store for each request",
    "leased": "Leased — permits taken in advance, fewer calls, never too many, at most a tenth unused",
}
STORE_FAILURES = {
    "local": "Decide locally — each proxy uses its share of the quota",
    "allow": "Allow every request until the store is back",
    "deny": "Deny every request until the store is back",
}

UNPRICED = {
    "deny": "Deny the request",
    "count_only": "Let it pass, and charge nothing",
    "charge_as": "Charge it as another model",
}
ALL = "all projects together"
AMOUNTS = ("quota", "burst", "rollover")
# Those that enforcement knows. Callers may report others.
UNITS = {
    "requests": "requests",
    "tokens": "tokens of a language model, input and output",
    "input_tokens": "tokens of a language model, input only",
    "output_tokens": "tokens of a language model, output only",
    MONEY: "money, by the prices of models",
}
UNMETERED = {"deny": "Deny the request", "count_only": "Let it pass, and count it as a request only"}


def explained(
    field: str, words: dict[str, str], label: str | None = None, *, required: bool = True
) -> forms.ChoiceField:
    """Return the form field of a column with choices, each explained by *words*. Without a label, its name is shown."""
    names = [name for name, _ in Limit._meta.get_field(field).choices]
    return forms.ChoiceField(
        choices=[(name, words.get(name, name)) for name in names],
        widget=UnfoldAdminSelectWidget,
        initial=Limit._meta.get_field(field).get_default(),
        label=label,
        required=required,
    )


def _calendar(name: str) -> str:
    return name if name == "lifetime" else f"calendar {name}"


class LimitForm(OneErrorForm):
    quota = PermitsField(
        label="Allow", help_text="How much is allowed in a window, such as 1,200, or 500.00 of money. 0 denies all."
    )
    unit = UnitField(
        max_length=Limit._meta.get_field("unit").max_length,
        initial=Limit._meta.get_field("unit").get_default(),
        help_text="What is counted. Choose a usual unit, or type one that your callers report.",
    )
    burst = PermitsField(required=False, least=1, help_text="How much is allowed at once. If empty, the quota.")
    rollover = PermitsField(
        required=False, least=1, help_text="How much unspent at most a window leaves to the next one. If empty, none."
    )
    algorithm = explained("algorithm", ALGORITHMS)
    window_seconds = DurationField(
        required=False,
        label="Length",
        help_text="Such as 30 seconds, 1 minute, 5m, 1 hour 30 minutes, 2 weeks. For concurrency, how long a slot is "
        "kept without a renewal.",
    )
    calendar = forms.ChoiceField(
        required=False,
        choices=[("", "length of time"), *((name, _calendar(name)) for name in CALENDARS)],
        widget=UnfoldAdminSelectWidget,
        label="Per",
        help_text="A length of time, or a window of the calendar. With lifetime, it never ends.",
    )
    time_zone = forms.CharField(
        required=False,
        max_length=64,
        widget=UnfoldAdminTextInputWidget,
        help_text="The time zone of the calendar, such as Europe/Berlin. If empty, a new budget of money has that of "
        "the policy's project, and any other limit UTC.",
    )
    partition_by = WordsField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "token or project"}),
        label="For each",
        help_text="If empty, each token or project. Else also attributes such as ip or model, or labels of the token "
        "such as label.team, of which each value has a counter of its own.",
    )
    match_methods = WordsField(required=False, label="Methods", help_text="Such as POST, PUT. If empty, every method.")
    match_attributes = RulesField(
        required=False,
        label="Attributes",
        help_text="One rule on each line, such as model = gpt-* or label.tier = free | trial. If empty, every request.",
    )
    mode = explained("mode", MODES)
    consistency = explained("consistency", CONSISTENCIES)
    on_store_failure = explained("on_store_failure", STORE_FAILURES, "If the store is unavailable")
    charge_on = WordsField(
        required=False,
        label="Charged responses",
        help_text="Status codes or classes such as 2xx or 404. If empty, each request is charged at once.",
    )
    weights = NumbersField(
        required=False,
        label="Weights of tokens",
        help_text="For tokens. One class on each line, such as cached_input = 100, which counts a tenth. A class that "
        "is left out counts 1000.",
    )
    # A page does not send what the unit does not use.
    unpriced = explained("unpriced", UNPRICED, "If the model has no price", required=False)
    unmetered = explained("unmetered", UNMETERED, "If no meter can read the request", required=False)

    class Meta:
        model = Limit
        exclude = ["position"]
        # Only of columns without a field above, which has its own label.
        labels = {"match_path": "Path", "charge_as": "Charged as"}
        help_texts = {
            "name": "The limit's name in headers, usage and overrides.",
            "anchor": "When a window starts. For month, day 1 to 31. For week, 1 (Monday) to 7. For day, HH:MM. For "
            "year, MM-DD.",
            "charge_as": "The model whose price is taken, such as gpt-4o.",
            "match_path": "A pattern such as /v1/chat/*. It begins with / or a wildcard. If empty, every path.",
        }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # "sg-units" is on the page of the policy.
        self.fields["unit"].widget.attrs |= {"list": "sg-units", "data-money": money_unit()}
        unit = self.fields["unit"].to_python(self["unit"].value())
        for name in AMOUNTS:
            self.fields[name].unit = unit
        if self.instance._state.adding:
            self.initial["time_zone"] = ""
            # Nobody is denied by a limit that was typed a moment ago, unless somebody chooses that.
            self.initial["mode"] = "shadow"

    @property
    def words(self) -> str:
        """What the limit allows in words, or nothing if it is new or not valid. The line of a folded limit says it."""
        if self.errors or not self.instance.name:
            return ""
        try:
            return in_brief(self.instance.as_value(), self.instance.policy)
        except InvalidLimit as exc:
            return f"cannot be enforced: {exc}"

    @property
    def is_changed(self) -> bool:
        """Whether a posted field differs from what is saved. A page does not send what an algorithm does not use."""
        return self.is_bound and any(self.add_prefix(name) in self.data for name in self.changed_data)

    @property
    def is_shadow(self) -> bool:
        return self["mode"].value() == "shadow"

    def clean_time_zone(self) -> str:
        return self.cleaned_data["time_zone"] or self.usual_zone()

    def usual_zone(self) -> str:
        """Return the zone of a limit that names none: for a budget of money that of the project, whose bill has it."""
        project = self.instance.policy.project
        is_budget = self.fields["quota"].unit == MONEY and bool(self["calendar"].value())
        return project.time_zone if project and is_budget and self.instance._state.adding else "UTC"

    def clean_unpriced(self) -> str:
        return self.cleaned_data["unpriced"] or DENY

    def clean_unmetered(self) -> str:
        return self.cleaned_data["unmetered"] or DENY

    def clean(self) -> dict[str, Any] | None:
        # Django would keep the former values of fields that are not sent.
        for name in ("weights", "charge_as", "rollover"):
            if self.add_prefix(name) not in self.data:
                setattr(self.instance, name, Limit._meta.get_field(name).get_default())
        return super().clean()


class LoneLimitForm(LimitForm):
    """The form of a limit that is not part of a policy's form."""

    class Meta(LimitForm.Meta):
        exclude = ["position", "policy"]


class LimitFormSet(PaginationInlineFormSet):
    @property
    def units(self) -> dict[str, str]:
        """The usual units as the form calls them, with words."""
        return {money_unit() if unit == MONEY else unit: words for unit, words in UNITS.items()}

    @property
    def is_sole(self) -> bool:
        """Whether there is one saved limit, which the page shows open. Of several, each is folded to a line."""
        return self.initial_form_count() == 1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.is_bound:
            self.data = self._with_deleted_as_new(self.data)

    def _with_deleted_as_new(self, data: QueryDict) -> QueryDict:
        """
        Return the posted fields, in which each limit that another user has deleted since is a new one at the end.

        Django shows only as many rows as there are limits, so nobody could see or correct the other rows of the form.
        """
        counts = ManagementForm(data, prefix=self.prefix)
        if not counts.is_valid():
            return data  # the form set says so
        initial = min(counts.cleaned_data["INITIAL_FORMS"], self.absolute_max)
        known = {limit.pk for limit in self.get_queryset()}
        deleted = [i for i in range(initial) if data.get(f"{self.prefix}-{i}-id") not in known]
        if not deleted:
            return data
        rows = [i for i in range(initial) if i not in deleted] + deleted
        places = {str(row): place for place, row in enumerate(rows)}
        changed = QueryDict(mutable=True)
        for key, values in data.lists():
            head, _, rest = key.removeprefix(f"{self.prefix}-").partition("-")
            moved = key.startswith(f"{self.prefix}-") and rest and head in places
            changed.setlist(f"{self.prefix}-{places[head]}-{rest}" if moved else key, values)
        for row in deleted:
            changed[f"{self.prefix}-{places[str(row)]}-id"] = ""
        changed[f"{self.prefix}-INITIAL_FORMS"] = str(initial - len(deleted))
        return changed

    def clean(self) -> None:
        """Refuse limits that do not fit into one policy. By itself, each is checked with the saved ones only."""
        super().clean()
        if not any(self.errors):
            kept = [form for form in self.forms if not self._should_delete_form(form)]
            Limit.check_together([form.instance for form in kept if form.instance_exists or form.has_changed()])

    def in_order(self) -> list[Limit]:
        """Return the limits that remain or are new, in the order of the page."""
        gone = self.deleted_forms
        forms_left = [form for form in self.forms if form not in gone and (form.instance_exists or form.has_changed())]
        return [form.instance for form in forms_left]

    def _construct_form(self, i: int, **options: Any) -> LimitForm:
        form = super()._construct_form(i, **options)
        form.instance_exists = not form.instance._state.adding
        # A new one has not been saved yet, so that the limit could not read it.
        form.instance.policy = self.instance
        return form


def explain(policy: Policy, posted: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return a dictionary with a sentence that says what the posted limit does, and with the errors of its fields."""
    form = LoneLimitForm(dict(posted), instance=Limit(policy=policy))
    form.is_valid()
    errors = {name: [str(text) for text in messages] for name, messages in form.errors.items()}
    try:
        description = "" if errors else sentence(form.instance.as_value(), holder_of(policy))
    except InvalidLimit as exc:
        return {"sentence": "", "errors": {exc.field: [exc.reason]}}
    return {"sentence": description, "errors": errors}


def in_brief(limit: LimitValue, policy: Policy) -> str:
    """Return in one line what a limit of a policy allows."""
    return brief(limit, ALL) if policy.is_global else brief(limit)


def holder_of(policy: Policy) -> str:
    """Return in words whose requests the limits of a policy count together."""
    if policy.is_global:
        return ALL
    tokens, projects, anonymous, _ = policy.uses
    holders = ["each token or project with this policy"] if tokens or projects or not anonymous else []
    # A limit has one counter for these requests of a project, unless it is partitioned by an attribute.
    return ", and for ".join(holders + ["each project's requests without a token"] * bool(anonymous))
