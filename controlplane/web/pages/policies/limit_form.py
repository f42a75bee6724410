"""The form of one limit, which is part of the form of its policy."""

import json
from collections.abc import Iterable
from typing import Any

from django import forms
from django.forms.formsets import ManagementForm
from django.http import QueryDict
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.changes.words.describe import brief, sentence
from controlplane.objects.policies.models import Limit, Policy, Uses, columns_of
from controlplane.web.kit.amounts import PermitsField, UnitField, money_unit
from controlplane.web.kit.forms import DurationField, NumbersField, OneErrorForm, RulesField, WordsField, field_of
from enforcement.model.limit_fields import (
    BY_NAME,
    ENDING,
    FIELDS,
    FIRST,
    HOW,
    METERED,
    OUTAGE,
    WHICH,
    Choice,
    Field,
)
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import CHARGE_AS, MONEY

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
# Fields that other fields decide, and that a form shows all the same. To choose a calendar changes the algorithm, and
# what leases do not go with is an error.
SHOWN = ("calendar", "consistency")
GROUPS = {WHICH: "sg-which", HOW: "sg-how", OUTAGE: "sg-failure", METERED: "sg-metered"}
# The usual limit is in the first two lines, which read as a sentence.
FIRST_LINES = (("quota", "unit", "calendar", "window_seconds", "partition_by"), ("name", "mode"))


def fieldsets() -> list[tuple[str | None, dict[str, Any]]]:
    """Return the parts of the form with their lines. Those after the first are folded, and say what they hold."""
    parts: dict[str, list[tuple[str, ...]]] = {FIRST: list(FIRST_LINES), **{group: [] for group in GROUPS}}
    placed = {name for line in FIRST_LINES for name in line}
    for field in FIELDS:
        lines = parts[field.group]
        columns = columns_of(field)
        rows = zip(field.parts, zip(columns, strict=True), strict=True) if field.parts else [(field, columns)]
        for row, names in rows:
            if row.is_beside:
                lines[-1] += names
            elif not placed.issuperset(names):
                lines.append(names)
    folded = [(name, {"fields": parts[name], "classes": ["collapse", style]}) for name, style in GROUPS.items()]
    return [(None, {"fields": parts[FIRST]}), *folded]


def made(field: Field, kind: type[forms.Field] = forms.ChoiceField, **options: Any) -> forms.Field:
    """
    Return the form field of a field of a limit, with its label, help, choices and default.

    Args:
        kind: Its class.
        options: Those of the class, also in place of what the table says.
    """
    usual: dict[str, Any] = {"label": field.form_label or field.label, "help_text": _help(field), "required": False}
    if field.choices:
        usual |= {"choices": [(name, _explained(name, one)) for name, one in field.choices.items()]}
        usual |= {"widget": UnfoldAdminSelectWidget, "required": field.group != METERED}
    if isinstance(field.default, str):
        usual["initial"] = field.default
    return kind(**usual | options)


def _explained(name: str, choice: Choice) -> str:
    title = name.replace("_", " ") if choice.why else choice.words
    return " — ".join(filter(None, (title[0].upper() + title[1:], choice.why)))


def _help(field: Field) -> str:
    return " ".join(filter(None, (field.help, field.typed)))


METHODS, PATH, ATTRIBUTES = BY_NAME["match"].parts
TEXT = {"widget": UnfoldAdminTextInputWidget}
# Columns whose form field is that of the model.
ALONE = {"name": BY_NAME["name"], "anchor": BY_NAME["anchor"], "match_path": PATH}
CONDITIONS = {
    column: [(condition.field, condition.values) for condition in field.only_if]
    for field in FIELDS
    if field.only_if and field.name not in SHOWN
    for column in columns_of(field)
}
CONDITIONS["charge_as"].append(("unpriced", (CHARGE_AS,)))


class LimitForm(OneErrorForm):
    quota = made(BY_NAME["quota"], PermitsField, required=True)
    unit = made(BY_NAME["unit"], UnitField, required=True, max_length=Limit._meta.get_field("unit").max_length)
    burst = made(BY_NAME["burst"], PermitsField, least=1)
    rollover = made(BY_NAME["rollover"], PermitsField, least=1)
    algorithm = made(BY_NAME["algorithm"])
    window_seconds = made(BY_NAME["window_seconds"], DurationField)
    calendar = made(
        BY_NAME["calendar"],
        required=False,
        choices=[("", "length of time"), *((name, f"calendar {name}") for name in ENDING), ("lifetime", "lifetime")],
    )
    time_zone = made(BY_NAME["time_zone"], forms.CharField, max_length=64, **TEXT)
    partition_by = made(
        BY_NAME["partition_by"],
        WordsField,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "token or project"}),
    )
    match_methods = made(METHODS, WordsField)
    match_attributes = made(ATTRIBUTES, RulesField)
    mode = made(BY_NAME["mode"])
    consistency = made(BY_NAME["consistency"])
    on_store_failure = made(BY_NAME["on_store_failure"])
    charge_on = made(BY_NAME["charge_on"], WordsField)
    weights = made(BY_NAME["weights"], NumbersField)
    unpriced = made(BY_NAME["unpriced"])
    unmetered = made(BY_NAME["unmetered"])

    class Meta:
        model = Limit
        exclude = ["position"]
        labels = {name: field.label for name, field in ALONE.items()} | {"charge_as": "Charged as"}
        help_texts = {name: _help(field) for name, field in ALONE.items()} | {
            "charge_as": "The model whose price is taken, such as gpt-4o."
        }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # "sg-units" is on the page of the policy.
        self.fields["unit"].widget.attrs |= {"list": "sg-units", "data-money": money_unit()}
        unit = field_of(self, "unit", UnitField).to_python(self["unit"].value()) or ""
        for name in AMOUNTS:
            field_of(self, name, PermitsField).unit = unit
        for name, conditions in CONDITIONS.items():
            self.fields[name].widget.attrs["data-only-if"] = json.dumps(conditions)
        if self.instance._state.adding:
            self.initial["time_zone"] = ""
            # Nobody is denied by a limit that was typed a moment ago, unless somebody chooses that.
            self.initial["mode"] = "shadow"

    @property
    def words(self) -> str:
        """The limit in words for the line of a folded limit, or nothing if it is new or not valid."""
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
        is_budget = field_of(self, "quota", PermitsField).unit == MONEY and bool(self["calendar"].value())
        return project.time_zone if project and is_budget and self.instance._state.adding else "UTC"

    def clean(self) -> dict[str, Any] | None:
        # A page does not send what other fields leave no choice for. Django would keep the former values.
        usual = Limit()
        for name in CONDITIONS:
            if name != "time_zone" and self.add_prefix(name) not in self.data:
                setattr(self.instance, name, getattr(usual, name))
        return super().clean()


class LoneLimitForm(LimitForm):
    """The form of a limit that is not part of a policy's form."""

    class Meta(LimitForm.Meta):
        exclude = ["position", "policy"]


class LimitFormSet(PaginationInlineFormSet):
    data: QueryDict

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
            remaining = [form for form in self.forms if not self._should_delete_form(form)]
            Limit.check_together([form.instance for form in remaining if form.instance_exists or form.has_changed()])

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
        description = "" if errors else sentence(form.instance.as_value(), holder_of(policy, policy.uses))
    except InvalidLimit as exc:
        return {"sentence": "", "errors": {exc.field: [exc.reason]}}
    return {"sentence": description, "errors": errors}


def in_brief(limit: LimitValue, policy: Policy) -> str:
    """Return in one line what a limit of a policy allows."""
    return brief(limit, ALL) if policy.is_global else brief(limit)


def holder_of(policy: Policy, uses: Uses) -> str:
    """Return in words whose requests the limits of a policy count together."""
    if policy.is_global:
        return ALL
    tokens, projects, anonymous, _ = uses
    holders = ["each token or project with this policy"] if tokens or projects or not anonymous else []
    # A limit has one counter for these requests of a project, unless it is partitioned by an attribute.
    return ", and for ".join(holders + ["each project's requests without a token"] * bool(anonymous))
