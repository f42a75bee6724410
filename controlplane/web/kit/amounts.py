"""
The input of amounts: money in the currency of the installation, or permits in the unit of a limit.

Every form that takes an amount has this field, so that what is typed means the same on every page.
"""

from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextInputWidget

from controlplane.core.money import InvalidAmount, read_amount, read_permits
from controlplane.traffic.usage.units import advice
from controlplane.web.kit.forms import NumbersField, WrittenField
from controlplane.web.kit.tags import tag
from enforcement.model.metered import MONEY
from enforcement.model.money import figure
from enforcement.model.sizes import MAX_NUMBER

# The class of an input of money, beside which the style sheet shows the currency.
OF_MONEY = "sg-money"
NO_MICROS = "Choose {}, and write amounts such as 500.00. Millionths, which are called micros, are for REST and files."


class AmountInput(UnfoldAdminTextInputWidget):
    """A text input with the currency beside it, which is shown if the unit is money."""

    unit = MONEY

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        context = super().get_context(name, value, attrs)
        own = context["widget"]["attrs"]
        own["class"] = f"{own.get('class', '')} sg-amount {OF_MONEY if self.unit == MONEY else ''}".strip()
        context["widget"]["attrs"] = {"inputmode": "decimal", **own}
        context["widget"]["suffix"] = settings.CURRENCY
        return context


class PermitsField(WrittenField):
    """
    Permits of a unit, such as 1,200, which are typed and shown as an amount if the unit is money. Kept as an integer.

    Args:
        least: The least amount of money, in millionths. Other bounds are those of the model.
    """

    widget = AmountInput

    def __init__(self, *, least: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.least = least
        self.unit = MONEY

    @property
    def unit(self) -> str:
        return self._unit

    @unit.setter
    def unit(self, unit: str) -> None:
        self._unit = self.widget.unit = unit

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, int):
            return value
        return figure(value) if self.unit == MONEY else str(value)

    def to_python(self, value: Any) -> int | None:
        if value in self.empty_values:
            return None
        try:
            return self.read(str(value))
        except InvalidAmount as exc:
            raise ValidationError(str(exc), code="invalid") from exc

    def read(self, text: str) -> int:
        return read_permits(text, self.unit, least=self.least)


class AmountField(PermitsField):
    """
    An amount of money such as 2.50, kept as millionths.

    Args:
        most: The greatest amount, in millionths.
    """

    def __init__(self, *, most: int = MAX_NUMBER, **options: Any) -> None:
        super().__init__(**options)
        self.most = most

    def read(self, text: str) -> int:
        return read_amount(text, least=self.least, most=self.most)


class UnitField(forms.CharField):
    """The unit of a limit. Money is called by a name that no unit of a caller can have."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return money_unit() if value == MONEY else value

    def to_python(self, value: Any) -> str | None:
        unit = super().to_python(value)
        return MONEY if unit and is_money(unit) else unit

    def clean(self, value: Any) -> str:
        if isinstance(value, str) and value.strip().lower() == MONEY:
            # An amount of an earlier page, or of whoever thinks in micros, would be a million times as much.
            raise ValidationError(NO_MICROS.format(money_unit()), code="invalid")
        return super().clean(value)

    def has_changed(self, initial: Any, data: Any) -> bool:
        return self.to_python(data) != initial


class CostsField(NumbersField):
    """Costs by unit, one on each line, such as ``tokens = 1200``, or ``USD = 2.50`` for money."""

    kind = "cost"
    line = "tokens = 1200"

    def to_python(self, value: Any) -> dict[str, Any]:
        lines, money = [], None
        for line in (value or "").splitlines():
            name, equals, text = (part.strip() for part in line.partition("="))
            if name == MONEY:
                raise ValidationError(NO_MICROS.format(settings.CURRENCY), code="invalid")
            if not equals or not (name == settings.CURRENCY or is_money(name)):
                lines.append(line)
                continue
            if money is not None:
                raise ValidationError(f"{settings.CURRENCY} must be named once.", code="invalid")
            try:
                money = read_amount(text)
            except InvalidAmount as exc:
                raise ValidationError(str(exc), code="invalid") from exc
        costs = super().to_python("\n".join(lines))
        return costs if money is None else {**costs, MONEY: money}


def counts_nothing(unit: str) -> SafeString:
    """Return what lists show beside a limit in a unit that nothing is charged in."""
    return tag("counts nothing", "warning", "warn", advice(unit, money=money_unit()))


def money_unit() -> str:
    """Return how forms call the unit of money, such as ``money (USD)``."""
    return f"money ({settings.CURRENCY})"


def is_money(text: str) -> bool:
    """Return whether a text in a form names the unit of money."""
    return text.strip().lower() == money_unit().lower()
