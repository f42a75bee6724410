"""The form of an override, and the one that raises a limit of a token or project."""

import hashlib
from copy import copy
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextareaWidget

from controlplane.core.money import exact
from controlplane.core.partitions import text_of
from controlplane.core.text import PRINTABLE
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token, check_is_future
from controlplane.web.kit import ends
from controlplane.web.kit.amounts import PermitsField
from controlplane.web.kit.forms import BACK, NOTHING_SAVED, InstantInput, RecordedForm, RulesField, field_of
from controlplane.web.pages.overrides.raising import Offers
from enforcement.model.metered import MONEY
from enforcement.model.sizes import MAX_NUMBER

OTHER, NEVER = "other", "never"
AMOUNTS = ("quota", "burst")
ENDLESS = "policies.add_endless_override"
END_REQUIRED = "An override needs an end. Only operators give one without."


class PartitionField(RulesField):
    """Values of a partition by name, one on each line, such as ``label.team = web``. Kept as a text."""

    kind = "value"
    line = "label.team = web"

    def prepare_value(self, value: Any) -> Any:
        return value

    def to_python(self, value: Any) -> Any:
        return text_of(super().to_python(value))

    def read(self, rule: str) -> str:
        return rule

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or "")
        except ValidationError:
            return True


class OverrideForm(RecordedForm):
    """A form with one reason, which the audit keeps, too."""

    change_reason = None
    may_be_endless = False

    quota = PermitsField(help_text="In the unit and for the window of the limit, such as 1,200, or 500.00 of money.")
    burst = PermitsField(required=False, least=1, help_text="For a token bucket. If empty, that of the limit.")
    partition = PartitionField(
        required=False,
        label="Only for the value",
        help_text="Of a limit with a counter for each value, such as label.team = web. One on each line. If empty, "
        "every value.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # A page that only shows the override has none of these.
        for name in AMOUNTS:
            if name in self.fields:
                field_of(self, name, PermitsField).unit = self._unit()

    def _unit(self) -> str:
        """Return the unit of the limit that is posted or saved, or that of requests if there is none."""
        key = self["limit"].value() if "limit" in self.fields else self.instance.limit_id
        return Limit.objects.filter(pk=str(key or "")).values_list("unit", flat=True).first() or "requests"

    def clean_ends_at(self) -> datetime | None:
        """Return the end, which only operators leave out."""
        end: datetime | None = self.cleaned_data["ends_at"]
        if end is None and not self.may_be_endless and (self.instance._state.adding or self.instance.ends_at):
            raise ValidationError(END_REQUIRED, code="required")
        return end

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        return {**cleaned, "change_reason": cleaned.get("reason", "")}


class RaiseForm(forms.Form):
    """
    A form that gives a token or project a higher quota for one of its limits, until an end.

    Args:
        holder: The token or project.
        offered: The limits that can be raised.
        zone: That of the user, in which the quick ends are meant.
        may_be_endless: Whether the user may leave out the end.
    """

    limit = forms.ChoiceField(widget=forms.RadioSelect, label="Limit")
    quota = PermitsField(label="New quota")
    until = forms.ChoiceField(
        widget=forms.RadioSelect,
        label="Until",
        error_messages={"required": "Choose when it ends."},
    )
    ends_at = forms.DateTimeField(required=False, label="Other time", widget=InstantInput)
    reason = forms.CharField(
        max_length=500, validators=[PRINTABLE], label="Reason", widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )
    seen = forms.CharField(max_length=32, widget=forms.HiddenInput)

    def __init__(
        self,
        *args: Any,
        holder: Token | Project,
        offered: Offers,
        now: datetime,
        zone: ZoneInfo,
        may_be_endless: bool,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.holder, self.now, self.zone = holder, now, zone
        self.offers = {offer.limit.pk: offer for offer in offered.rows}
        field_of(self, "limit", forms.ChoiceField).choices = [
            (pk, str(offer.limit)) for pk, offer in self.offers.items()
        ]
        never = [(NEVER, "No end")] if may_be_endless else []
        field_of(self, "until", forms.ChoiceField).choices = [*ends.NAMES.items(), (OTHER, "Other time"), *never]
        self.initial = {"limit": next(iter(self.offers), ""), "until": ends.FRIDAY}
        self.present = digest(offered)
        chosen = self.offers.get(self["limit"].value() or "")
        field_of(self, "quota", PermitsField).unit = chosen.limit.unit if chosen else "requests"

    @property
    def hints(self) -> dict[str, str]:
        """The meaning of each quick end, in words."""
        return {
            name: ends.in_words(ends.quick_end(name, self.now, self.zone), self.now, self.zone) for name in ends.NAMES
        }

    def clean_seen(self) -> str:
        """Refuse a form that was opened before somebody else changed one of the overrides."""
        seen: str = self.cleaned_data["seen"]
        if seen != self.present:
            raise ValidationError("An override was changed after you opened this page. Check and save again.")
        return seen

    def clean(self) -> dict[str, Any]:
        given = self.cleaned_data
        if BACK in self.data:
            self.add_error(None, NOTHING_SAVED)
        offer = self.offers.get(given.get("limit", ""))
        if offer and "quota" in given and not offer.limit.quota < given["quota"] <= MAX_NUMBER:
            most = exact(MAX_NUMBER) if offer.limit.unit == MONEY else "2^53 - 1 permits"
            rule = f"Must be above the {offer.policy_quota} that the policy gives, and at most {most}."
            self.add_error("quota", rule)
        self._clean_end(given)
        return given

    def _clean_end(self, given: dict[str, Any]) -> None:
        until = given.get("until")
        if until in ends.NAMES:
            given["ends_at"] = ends.quick_end(until, self.now, self.zone)
        elif until == NEVER:
            given["ends_at"] = None
        elif until == OTHER and "ends_at" in given:
            if given["ends_at"] is None:
                self.add_error("ends_at", "Enter the time at which it ends.")
                return
            try:
                check_is_future("ends_at", given["ends_at"])
            except ValidationError as exc:
                self.add_error(None, exc)

    @property
    def former(self) -> Override | None:
        """The present override of the limit that a valid form names, or None."""
        return self.offers[self.cleaned_data["limit"]].override

    def override(self) -> Override:
        """Return the override that a valid form asks for, as a copy of the present one of the limit if there is one."""
        given = self.cleaned_data
        offer = self.offers[given["limit"]]
        name = "token" if isinstance(self.holder, Token) else "project"
        result = copy(offer.override) or Override(limit=offer.limit, **{name: self.holder})
        result.quota, result.ends_at, result.reason = given["quota"], given["ends_at"], given["reason"]
        return result


def digest(offered: Offers) -> str:
    """Return 32 hexadecimal characters that stand for the quotas and overrides of a page."""
    seen = [
        (offer.limit.pk, offer.limit.quota, offer.override and offer.override.as_record()) for offer in offered.rows
    ]
    return hashlib.sha256(repr(sorted(seen, key=lambda row: row[0])).encode()).hexdigest()[:32]
