"""Form fields and forms that several pages of the admin use."""

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.utils import quote
from django.contrib.messages import get_messages
from django.contrib.messages.storage.base import BaseStorage
from django.contrib.sessions.models import Session
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import reverse
from django.utils import timezone
from django.utils.timesince import timesince
from unfold.forms import BaseDialogForm
from unfold.widgets import INPUT_CLASSES, UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.describe import seconds_of
from controlplane.changes.words.entries import lines_of
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.names import Names
from controlplane.web.kit.state import Dialog, state_of
from enforcement.model.instants import duration as in_words


class WrittenField(forms.Field):
    """An integer that people write in another way. The rules of the model check its bounds."""

    widget = UnfoldAdminTextInputWidget

    def validate(self, value: int | None) -> None:
        if self.required and value is None:
            raise ValidationError(self.error_messages["required"], code="required")

    def run_validators(self, value: int | None) -> None:
        """Do nothing, because the validators of a text would judge an integer."""

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != initial
        except ValidationError:
            return True


class DurationField(WrittenField):
    """A number of seconds, typed and shown as words such as "1 hour 30 minutes"."""

    def prepare_value(self, value: Any) -> Any:
        return in_words(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> int | None:
        if value in self.empty_values:
            return None
        try:
            return seconds_of(str(value))
        except ValueError as exc:
            message = f"Must be a duration such as 30 seconds, 5m, 1 hour 30 minutes or 2 weeks, got {value!r}."
            raise ValidationError(message) from exc


class WordsField(forms.Field):
    """A list of words, typed on one line with commas or spaces between them."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        return re.split(r"[\s,]+", value.strip(" ,\n\r\t")) if value and value.strip(" ,\n\r\t") else []

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.to_python(data) != (initial or [])


class RulesField(forms.Field):
    """Rules for attributes, one on each line, such as ``model = gpt-*`` or ``tier = free | trial``."""

    widget = UnfoldAdminTextareaWidget
    kind = "rule"
    line = "model = gpt-*"

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
                one = f'one {self.kind} such as "{self.line}"'
                raise ValidationError(f"Each line must hold {one}, each name once, got {line.strip()!r}.")
            rules[name] = self.read(rule)
        return rules

    def read(self, rule: str) -> Any:
        """Return the value of what a line has after the name."""
        options = [option.strip() for option in rule.split("|")]
        return options if len(options) > 1 else rule

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or {})
        except ValidationError:
            return True


class NumbersField(RulesField):
    """Integers by name, one on each line, such as ``cached_input = 100``."""

    line = "cached_input = 100"

    def to_python(self, value: Any) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for name, number in super().to_python(value).items():
            if not isinstance(number, str) or not (number.isascii() and number.isdigit() and len(number) <= 16):
                raise ValidationError(f'Each line must hold a name and an integer such as "{name} = 100".')
            numbers[name] = int(number)
        return numbers


class LabelsField(RulesField):
    """Labels by name, one on each line, such as ``team = red``."""

    kind = "label"
    line = "team = red"

    def read(self, rule: str) -> str:
        return rule


class InstantInput(forms.DateTimeInput):
    """A date and time input of the browser, which is one field with one label."""

    input_type = "datetime-local"

    def __init__(self, attrs: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__({"class": " ".join(INPUT_CLASSES), **(attrs or {})}, format="%Y-%m-%dT%H:%M", **options)


class ReasonDialog(BaseDialogForm):
    """A dialog that asks for the reason of an action. The audit keeps the reason."""

    reason = forms.CharField(
        max_length=500,
        validators=[PRINTABLE],
        widget=UnfoldAdminTextInputWidget,
        help_text="The audit keeps the reason.",
    )

    @property
    def place(self) -> Dialog:
        """Where the dialog is shown."""
        return state_of(self.request).dialog


def version_of(row: Any) -> str:
    """
    Return 32 hexadecimal characters that stand for the row's present state.

    A form that was opened on another state must not be saved over this one.
    """
    record = json.dumps(row.as_record(), sort_keys=True, default=str)
    return hashlib.sha256(record.encode()).hexdigest()[:32]


def field_of[F: forms.Field](form: forms.BaseForm, name: str, kind: type[F]) -> F:
    """Return a field of a form, which must be of this class."""
    field = form.fields[name]
    if not isinstance(field, kind):
        raise TypeError(f"{name} is no {kind.__name__}.")
    return field


class OneErrorForm(forms.ModelForm):
    """A form that shows an error of the model only where the form has none, and only once."""

    def add_error(self, field: str | None, error: Any) -> None:
        if field is None and hasattr(error, "error_dict"):
            fresh = {name: self._untold(name, errors) for name, errors in error.error_dict.items()}
            error = ValidationError({name: errors for name, errors in fresh.items() if errors})
        super().add_error(field, error)

    def _untold(self, name: str, errors: list[ValidationError]) -> list[ValidationError]:
        """Return those of the model's errors that are not shown yet. Its constraints may repeat its clean()."""
        if name != NON_FIELD_ERRORS and name in self.errors:
            return []
        shown, untold = set(self.errors.get(name, [])), []
        for error in errors:
            if not shown.issuperset(error.messages):
                shown.update(error.messages)
                untold.append(error)
        return untold


# The button of a review that leads back to the form.
BACK = "_back"
NOTHING_SAVED = "Nothing is saved yet. Change what you like, and save again to review it."


# Names one opened form, so that it is saved once, however often a browser sends it.
FORM_KEY = "form_key"
SENT = "sent_forms"
MOST_SENT = 12
SENT_TWICE = "The form was sent twice. It was saved once."
SECRET_MISSED = "The form was sent twice, and created this once. If you have not seen its secret, replace it."


class RecordedForm(OneErrorForm):
    """A form that remembers which state of the row it was opened on, and asks for a reason."""

    form_key = forms.CharField(required=False, max_length=64, widget=forms.HiddenInput)

    # Not the name of a column, because Django drops a declared field that the admin also shows as a read-only column.
    seen_version = forms.CharField(required=False, max_length=32, widget=forms.HiddenInput)
    change_reason: forms.Field | None = forms.CharField(
        required=False,
        max_length=500,
        label="Reason for the change",
        validators=[PRINTABLE],
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional. The audit keeps the reason.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Computed now, before Django copies the posted values into the row.
        self.present = "" if self.instance._state.adding else version_of(self.instance)
        self.initial["seen_version"] = self.present
        self.initial[FORM_KEY] = secrets.token_urlsafe(16)
        reason = self.fields.get("change_reason")
        if reason is not None and getattr(self.instance, "managed_by", None):
            reason.required = True
            reason.help_text = "Required, because this is managed from files. The audit keeps the reason."

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if self.present and cleaned.get("seen_version") != self.present:
            self.add_error(None, self._conflict_message())
            # The user has seen the message, so the next save of this form is accepted.
            data = QueryDict(mutable=True)
            data.update(self.data)
            data[self.add_prefix("seen_version")] = self.present
            self.data = data
        if BACK in self.data:
            self.add_error(None, NOTHING_SAVED)
        return cleaned

    def _conflict_message(self) -> str:
        """Return a message that says who changed the row after this form was opened, when, and what."""
        what = self.instance._meta.verbose_name
        last = AuditEntry.objects.filter(object_type=self.instance._meta.model_name, object_id=self.instance.pk).first()
        if last is None:
            return f"This {what} was changed after you opened it. Your changes are not saved. Check it and save again."
        now = timezone.now()
        ago = "just now" if now - last.at < timedelta(minutes=1) else f"{timesince(last.at, now, depth=1)} ago"
        changes = "; ".join(map(str, lines_of(last, Names.of([last]))[:6]))
        return (
            f"{last.actor} changed this {what} {ago}" + (f" ({changes})" if changes else "") + ". Your changes are "
            "not saved yet. The fields below hold your values. If you save again, they replace that change."
        )


class SentForms:
    """
    The forms that the session of a request has sent, each with the address of the row that it has saved.

    Until the end of the transaction, other requests of the session wait, so that the second one finds the first.
    """

    def __init__(self, request: HttpRequest) -> None:
        self.request, self.digest = request, _digest(request)
        self.urls: dict[str, str] = {}
        if self.digest is not None:
            session = Session.objects.select_for_update().filter(pk=request.session.session_key).first()
            self.urls = session.get_decoded().get(SENT, {}) if session else {}

    def saved_before(self) -> str | None:
        """Return the address of the row that the very same form has saved, or None."""
        return self.urls.get(self.digest) if self.digest else None

    def keep(self, url: str) -> None:
        """Keep that the posted form has saved the row at *url*."""
        if self.digest is not None:
            self.request.session[SENT] = dict([*self.urls.items(), (self.digest, url)][-MOST_SENT:])
            self.request.session.save()


def say_once(request: HttpRequest, level: int, text: str) -> None:
    """Add a message, unless one with this text is still to be shown. A browser may drop the page that would show it."""
    waiting = get_messages(request)
    shown = text in [message.message for message in waiting]
    if isinstance(waiting, BaseStorage):
        waiting.used = False
    if not shown:
        messages.add_message(request, level, text)


def _digest(request: HttpRequest) -> str | None:
    """Return what names a posted form and all that it holds, or None if it has no key."""
    if not request.POST.get(FORM_KEY) or not request.session.session_key:
        return None
    held = sorted((name, values) for name, values in request.POST.lists() if name != "csrfmiddlewaretoken")
    return hashlib.sha256(json.dumps([request.path, held]).encode()).hexdigest()[:32]


def sent_once(request: HttpRequest, view: Callable[[], HttpResponse], missed: str = "") -> HttpResponse:
    """
    Return the response of *view*, or a redirect to the row if the very same form has saved it before.

    Args:
        missed: What the user is told then, if the response of *view* is all that ever shows the secret of the row.
    """
    sent = SentForms(request)
    if url := sent.saved_before():
        say_once(request, messages.WARNING if missed else messages.INFO, missed or SENT_TWICE)
        return HttpResponseRedirect(url)
    state_of(request).saved = None  # an attempt that was undone may have set it
    response = view()
    if (row := state_of(request).saved) is not None:
        opts = row._meta
        sent.keep(reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[quote(row.pk)]))
    return response
