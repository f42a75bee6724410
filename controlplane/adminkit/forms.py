"""Fields and forms that the admin's pages share: durations in words, lists in a line, reasons, the version edited."""

import hashlib
import json
import re
from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.timesince import timesince
from unfold.forms import BaseDialogForm
from unfold.widgets import INPUT_CLASSES, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from controlplane.policies.describe import in_words, seconds_of
from controlplane.policies.differences import differences
from controlplane.policies.models import AuditEntry


class DurationField(forms.CharField):
    """Seconds, written as people say them."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return in_words(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> int | None:
        if value in self.empty_values:
            return None
        try:
            return seconds_of(str(value))
        except ValueError as exc:
            raise ValidationError("Write a duration such as 30 seconds, 5m, 1 hour 30 minutes or 2 weeks.") from exc

    def validate(self, value: int | None) -> None:
        if self.required and value is None:
            raise ValidationError(self.error_messages["required"])

    def run_validators(self, value: int | None) -> None:
        """Leave the bounds to the limit's own rules."""

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != initial
        except ValidationError:
            return True


class WordsField(forms.CharField):
    """A list of words in one line."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        return re.split(r"[\s,]+", value.strip(" ,\n\r\t")) if value and value.strip(" ,\n\r\t") else []

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.to_python(data) != (initial or [])


class RulesField(forms.CharField):
    """Attribute rules, one a line: ``model = gpt-*`` or ``tier = free | trial``."""

    widget = UnfoldAdminTextareaWidget

    def __init__(self, **options: Any) -> None:
        super().__init__(widget=self.widget(attrs={"rows": 3}), **options)

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return "\n".join(f"{name} = {' | '.join(r) if isinstance(r, list) else r}" for name, r in value.items())

    def to_python(self, value: Any) -> dict[str, Any]:
        rules: dict[str, Any] = {}
        for line in (value or "").splitlines():
            if not line.strip():
                continue
            name, equals, rule = (part.strip() for part in line.partition("="))
            if not equals or not rule or name in rules:
                raise ValidationError(f'Write one rule a line, like "model = gpt-*", each name once: {line.strip()!r}.')
            options = [option.strip() for option in rule.split("|")]
            rules[name] = options if len(options) > 1 else rule
        return rules

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or {})
        except ValidationError:
            return True


class InstantInput(forms.DateTimeInput):
    """The browser's own date and time input, which is one field with one label."""

    input_type = "datetime-local"

    def __init__(self, attrs: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__({"class": " ".join(INPUT_CLASSES), **(attrs or {})}, format="%Y-%m-%dT%H:%M", **options)


class ReasonDialog(BaseDialogForm):
    """What is done to others has a reason, which the audit keeps."""

    reason = forms.CharField(
        max_length=500, widget=UnfoldAdminTextInputWidget, help_text="Kept in the audit, for whoever asks why."
    )


def version_of(row: Any) -> str:
    """Name the state that a row has now: a form that was opened on another one must not be saved over it."""
    record = json.dumps(row.as_record(), sort_keys=True, default=str)
    return hashlib.sha256(record.encode()).hexdigest()[:32]


class RecordedForm(forms.ModelForm):
    """A form that knows which state it was opened on, and takes the reason of the change."""

    # No column's name: Django leaves out a declared field that the admin shows as a read-only column.
    seen_version = forms.CharField(required=False, max_length=32, widget=forms.HiddenInput)
    change_reason = forms.CharField(
        required=False,
        max_length=500,
        label="Reason for the change",
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional. Kept in the audit, for whoever asks why.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Before the posted values are laid over the row.
        self.present = "" if self.instance._state.adding else version_of(self.instance)
        self.initial["seen_version"] = self.present

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.present and cleaned.get("seen_version") != self.present:
            self.add_error(None, self._who_was_faster())
            # Whoever has read the message may save over it.
            self.data = self.data.copy()
            self.data[self.add_prefix("seen_version")] = self.present
        return cleaned

    def _who_was_faster(self) -> str:
        what = self.instance._meta.verbose_name
        last = AuditEntry.objects.filter(object_type=self.instance._meta.model_name, object_id=self.instance.pk).first()
        if last is None:
            return f"This {what} was changed after you opened it. Nothing of yours is saved: look again, then save."
        now = timezone.now()
        ago = "just now" if now - last.at < timedelta(minutes=1) else f"{timesince(last.at, now, depth=1)} ago"
        told = "; ".join(f"{name}: {old} → {new}" for name, old, new in differences(last.before, last.after)[:6])
        return (
            f"{last.actor} changed this {what} {ago}" + (f" ({told})" if told else "") + ". Nothing of yours is "
            "saved yet. The fields below hold your values: saving again puts them over that change."
        )
