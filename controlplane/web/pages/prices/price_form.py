"""The form of a price, in which people write amounts of money and not millionths."""

import re
from collections.abc import Collection
from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextareaWidget

from controlplane.core.money import InvalidAmount, amount, read_amount
from controlplane.objects.prices.models import BOUNDS, FURTHER, RATES, ModelPrice
from controlplane.web.kit.amounts import AmountField
from controlplane.web.kit.forms import RecordedForm
from enforcement.metering.amounts import FURTHER_NAMES
from enforcement.metering.price_documents import MAX_RATE
from enforcement.model.sizes import MAX_NUMBER

_IN_TIERS = (*RATES, *FURTHER_NAMES)
_TIER = re.compile(r"above\s+([\d,_]+)\s*:(.*)", re.ASCII)


class NamedField(forms.Field):
    """
    A number for each of some names, one on each line, such as ``output_image 30``.

    Args:
        rule: What is said of a wrong line.
        scale: What a number in the form is multiplied by.
        names: The names that may be there. Empty: the library knows.
    """

    def __init__(self, rule: str, scale: int, names: Collection[str] = (), **options: Any) -> None:
        super().__init__(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), **options)
        self._rule, self._scale, self._names = rule, scale, names

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # A column of PostgreSQL keeps no order.
        rows = ((name, value[name]) for name in self._names or sorted(value) if name in value)
        return "\n".join(f"{name} {amount(number * 1_000_000 // self._scale)}" for name, number in rows)

    def to_python(self, value: Any) -> dict[str, int]:
        lines = [line.split() for line in (value or "").splitlines() if line.strip()]
        names = [line[0] for line in lines]
        for line in lines:
            if len(line) != 2 or (self._names and line[0] not in self._names) or names.count(line[0]) > 1:
                raise ValidationError(f"{self._rule}, got {' '.join(line)[:80]!r}.")
        return {name: self._number(number) for name, number in lines}

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or {})
        except ValidationError:
            return True

    def _number(self, text: str) -> int:
        micros = _micros(text, MAX_NUMBER)
        if micros * self._scale % 1_000_000:
            raise ValidationError(f"Must have at most three decimals, got {text[:40]!r}.")
        return micros * self._scale // 1_000_000


class TiersField(forms.Field):
    """Prices for requests with more input, one on each line, such as ``above 200000: input 5, output 22.5``."""

    rule = 'Each line must have the form "above 200000: input 5, output 22.5"'

    def __init__(self, **options: Any) -> None:
        super().__init__(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), **options)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(line_of, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[dict[str, int]]:
        return [self._tier(line.strip()) for line in (value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return self.to_python(data) != (initial or [])
        except ValidationError:
            return True

    def _tier(self, line: str) -> dict[str, int]:
        matched = _TIER.fullmatch(line)
        parts = [part.split() for part in matched[2].split(",")] if matched else [[]]
        names = [part[0] for part in parts if len(part) == 2]
        if matched is None or len(names) < len(parts) or len(set(names)) < len(names) or set(names) - set(_IN_TIERS):
            raise ValidationError(f"{self.rule}, with one or more of {', '.join(_IN_TIERS)}, got {line[:80]!r}.")
        return {"above_input": _integer(matched[1]), **{name: _micros(text) for name, text in parts}}


class PriceForm(RecordedForm):
    input = AmountField(most=MAX_RATE, label="Input")
    output = AmountField(most=MAX_RATE, label="Output")
    cached_input = AmountField(
        most=MAX_RATE,
        required=False,
        label="Cached input",
        help_text="Input that the provider has read before. If empty, as the dearest class of the input.",
    )
    cache_write = AmountField(
        most=MAX_RATE,
        required=False,
        label="Cache write",
        help_text="Input that the provider keeps for later. If empty, as the dearest class of the input.",
    )
    calls = AmountField(
        most=MAX_RATE,
        required=False,
        label="Calls of tools",
        help_text="A million calls of the provider's own tools, such as searches of the web, whatever the length of "
        "the request. If empty, they cost nothing here, and what is charged is called approximate.",
    )
    classes = NamedField(
        'Each line must have the form "output_image 30", with one of ' + ", ".join(FURTHER),
        1_000_000,
        FURTHER,
        required=False,
        label="Other classes",
        help_text="A million tokens of sound or images, such as output_image 30, of what is cached for an hour, and a "
        "million file_searches or containers, one line for each.",
    )
    bounds = NamedField(
        'Each line must have the form "file 100000", with one of ' + ", ".join(BOUNDS),
        1,
        BOUNDS,
        required=False,
        label="Bounds",
        help_text="For policies with the estimate bound: the most tokens of one part, such as file 100000, and of what "
        "the provider adds by itself, as added_tokens 2000, one line for each. For all policies that name none: the "
        "output tokens of a request without a cap, as default_cap 16000.",
    )
    multipliers = NamedField(
        'Each line must have the form "service_tier=priority 2"',
        1_000,
        required=False,
        label="Multipliers",
        help_text="How many times all of it is charged by what the answer says, one line for each, such as "
        "service_tier=priority 2",
    )
    tiers = TiersField(
        required=False,
        label="Long requests",
        help_text="Prices of the whole request if its input is longer, one line for each length, such as "
        "above 200000: input 5, output 22.5",
    )

    class Meta:
        model = ModelPrice
        exclude: list[str] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("input", "output"):
            if name in self.fields:
                self.fields[name].help_text = f"{settings.CURRENCY} for a million tokens."
        # These have no place for the currency beside each amount.
        for name in ("classes", "tiers"):
            if name in self.fields:
                self.fields[name].help_text = f"In {settings.CURRENCY}. {self.fields[name].help_text}"


def _micros(text: str, most: int = MAX_RATE) -> int:
    try:
        return read_amount(text, most=most)
    except InvalidAmount as exc:
        raise ValidationError(str(exc), code="invalid") from exc


def _integer(text: str) -> int:
    digits = re.sub("[,_]", "", text)
    if not 0 < len(digits) <= 16:
        raise ValidationError(f"Must be a number of tokens, got {text[:40]!r}.")
    return int(digits)


def line_of(tier: Any) -> str:
    """Return a tier as a line of the form."""
    if not isinstance(tier, dict):
        return str(tier)
    rates = [f"{name} {amount(tier[name])}" for name in _IN_TIERS if isinstance(tier.get(name), int)]
    return f"above {tier.get('above_input')}: {', '.join(rates)}"
