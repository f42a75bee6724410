"""The form of one limit, as it stands inside its policy's form."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from controlplane.adminforms import DurationField, RulesField, WordsField
from controlplane.policies.models import Limit, Policy, choices
from controlplane.policies.words import sentence
from enforcement.model.limits import CALENDARS, InvalidLimit

ALGORITHMS = {
    "fixed_window": "Fixed window — all at once when a window begins; also by the calendar",
    "sliding_window": "Sliding window — smooth, cheap, right for most",
    "sliding_log": "Sliding log — exact to the request, for small quotas",
    "token_bucket": "Token bucket — a steady rate with bursts",
    "concurrency": "Concurrency — so many at a time",
}
MODES = {"enforce": "Enforce — deny what is over it", "shadow": "Shadow — only watch and report, never deny"}
CONSISTENCIES = {
    "strict": "Strict — one call to the store for each request, exact",
    "leased": "Leased — permits held ahead: no call while they last, never too many, at most a tenth unused",
}
STORE_FAILURES = {
    "local": "Go on locally — each proxy keeps its share of the quota",
    "allow": "Allow everything until it is back",
    "deny": "Deny everything until it is back",
}


def explained(field: str, words: dict[str, str], help_text: str = "") -> forms.ChoiceField:
    names = [name for name, _ in Limit._meta.get_field(field).choices]
    return forms.ChoiceField(
        choices=[(name, words.get(name, name)) for name in names],
        widget=UnfoldAdminSelectWidget,
        initial=Limit._meta.get_field(field).get_default(),
        help_text=help_text,
    )


class LimitForm(forms.ModelForm):
    algorithm = explained("algorithm", ALGORITHMS)
    window_seconds = DurationField(
        required=False,
        label="Window",
        help_text="Such as 30 seconds, 1 minute, 5m, 1 hour 30 minutes, 2 weeks. Of concurrency: how long a slot is "
        "kept without a sign of life.",
    )
    calendar = forms.ChoiceField(
        required=False,
        choices=[("", "no: a window of fixed length"), *choices(CALENDARS)],
        widget=UnfoldAdminSelectWidget,
        label="By the calendar",
        help_text="A month is then a real month. Lifetime never starts again.",
    )
    time_zone = forms.CharField(
        required=False,
        max_length=64,
        widget=UnfoldAdminTextInputWidget,
        help_text="Whose calendar, such as Europe/Berlin.",
    )
    partition_by = WordsField(
        required=False,
        label="A counter for each",
        help_text="Attributes such as ip or model: each value gets a counter of its own. Empty: one for the holder.",
    )
    match_methods = WordsField(required=False, label="Methods", help_text="Such as POST, PUT. Empty: every method.")
    match_attributes = RulesField(
        required=False,
        label="Attributes",
        help_text="One rule a line: model = gpt-*, or tier = free | trial. Empty: every request.",
    )
    mode = explained("mode", MODES)
    consistency = explained("consistency", CONSISTENCIES)
    on_store_failure = explained("on_store_failure", STORE_FAILURES)
    charge_on = WordsField(
        required=False,
        label="Charge only for",
        help_text="Answers such as 2xx or 404. Empty: every request, at once.",
    )

    class Meta:
        model = Limit
        exclude = ["position"]
        labels = {"match_path": "Path", "on_store_failure": "When the store is away"}
        help_texts = {
            "name": "Names it in headers, usage and overrides.",
            "quota": "How many. 0 denies all.",
            "unit": "What is counted: requests, or tokens, micros ... as the caller reports.",
            "burst": "How much may come at once. Empty: the quota.",
            "anchor": "Where it begins. Month: day 1 to 31; week: 1 (Monday) to 7; day: HH:MM; year: MM-DD.",
            "match_path": "A pattern such as /v1/chat/*. Empty: every path.",
        }

    def clean_time_zone(self) -> str:
        return self.cleaned_data["time_zone"] or "UTC"

    def add_error(self, field: str | None, error: Any) -> None:
        """Say one thing about a field: what the form refused, the model would only refuse again."""
        if field is None and hasattr(error, "error_dict"):
            fresh = {name: told for name, told in error.error_dict.items() if name not in self._errors}
            error = ValidationError(fresh)
        super().add_error(field, error)


class LoneLimitForm(LimitForm):
    """A limit outside of its policy's form."""

    class Meta(LimitForm.Meta):
        exclude = ["position", "policy"]


class LimitFormSet(PaginationInlineFormSet):
    def _existing_object(self, pk: str) -> Limit:
        # Somebody may have deleted it since this form was opened: an empty row then says so at its field.
        return super()._existing_object(pk) or Limit(policy=self.instance)

    def in_order(self) -> list[Limit]:
        """Return the limits that stay or come, as they stand on the page."""
        gone = self.deleted_forms
        forms_left = [form for form in self.forms if form not in gone and (form.instance_exists or form.has_changed())]
        return [form.instance for form in forms_left]

    def _construct_form(self, i: int, **options: Any) -> LimitForm:
        form = super()._construct_form(i, **options)
        form.instance_exists = not form.instance._state.adding
        return form


def explain(policy: Policy, posted: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Say in a sentence what the posted fields mean, or what is wrong at which field."""
    form = LoneLimitForm(dict(posted), instance=Limit(policy=policy))
    form.is_valid()
    errors = {name: [str(text) for text in told] for name, told in form.errors.items()}
    try:
        told = "" if errors else sentence(form.instance.as_value(), holder_of(policy))
    except InvalidLimit as exc:
        return {"sentence": "", "errors": {exc.field: [exc.reason]}}
    return {"sentence": told, "errors": errors}


def holder_of(policy: Policy) -> str:
    """Say whom the limits of a policy count for: what it is attached to."""
    return "everything together" if policy.is_global else "each token or project that has this policy"
