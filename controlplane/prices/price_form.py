"""The form of a price, in which people write amounts of money and not millionths."""

import re
from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminTextareaWidget

from controlplane.adminkit.amounts import AmountField
from controlplane.adminkit.forms import RecordedForm
from controlplane.core.money import InvalidAmount, amount, read_amount
from controlplane.prices.models import RATES, ModelPrice
from enforcement.metering.price_documents import MAX_RATE

_TIER = re.compile(r"above\s+([\d,_]+)\s*:(.*)", re.ASCII)


class TiersField(forms.CharField):
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
        found = _TIER.fullmatch(line)
        parts = [part.split() for part in found[2].split(",")] if found else [[]]
        names = [part[0] for part in parts if len(part) == 2]
        if found is None or len(names) < len(parts) or len(set(names)) < len(names) or set(names) - set(RATES):
            raise ValidationError(f"{self.rule}, with one or more of {', '.join(RATES)}, got {line[:80]!r}.")
        try:
            rates = {name: read_amount(text, most=MAX_RATE) for name, text in parts}
        except InvalidAmount as exc:
            raise ValidationError(str(exc), code="invalid") from exc
        return {"above_input": _integer(found[1]), **rates}


class PriceForm(RecordedForm):
    input = AmountField(most=MAX_RATE, label="Input")
    output = AmountField(most=MAX_RATE, label="Output")
    cached_input = AmountField(
        most=MAX_RATE,
        required=False,
        label="Cached input",
        help_text="Input that the provider has read before. If empty, as input.",
    )
    cache_write = AmountField(
        most=MAX_RATE,
        required=False,
        label="Cache write",
        help_text="Input that the provider keeps for later. If empty, as input.",
    )
    calls = AmountField(
        most=MAX_RATE,
        required=False,
        label="Calls of tools",
        help_text="A million calls of the provider's own tools, such as searches of the web, whatever the length of "
        "the request. If empty, they cost nothing here, and what is charged is called approximate.",
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


def _integer(text: str) -> int:
    digits = re.sub("[,_]", "", text)
    if not 0 < len(digits) <= 16:
        raise ValidationError(f"Must be a number of tokens, got {text[:40]!r}.")
    return int(digits)


def line_of(tier: Any) -> str:
    """Return a tier as a line of the form."""
    if not isinstance(tier, dict):
        return str(tier)
    rates = [f"{name} {amount(tier[name])}" for name in RATES if isinstance(tier.get(name), int)]
    return f"above {tier.get('above_input')}: {', '.join(rates)}"
