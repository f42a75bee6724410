"""Money as people write it. It is counted in millionths of the installation's currency."""

from django.conf import settings

from enforcement.model.metered import MONEY


def amount(micros: int) -> str:
    """Return millionths as a decimal number of whole units, such as ``2.5`` for 2,500,000."""
    whole, rest = divmod(abs(micros), 1_000_000)
    return f"{_sign(micros)}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def exact(micros: int) -> str:
    """Return millionths with at least two decimals, and the currency, such as ``0.075 USD``."""
    whole, _, decimals = amount(abs(micros)).partition(".")
    return f"{_sign(micros)}{int(whole):,}.{decimals:0<2} {settings.CURRENCY}"


def rounded(micros: int) -> str:
    """Return a sum of millionths with two decimals, or all of them if it is below a cent, and the currency."""
    return exact(micros) if abs(micros) < 10_000 else f"{micros / 1_000_000:,.2f} {settings.CURRENCY}"


def permits(number: int, unit: str) -> str:
    """Return permits of a unit without its name, such as ``1,200``, or as money if that is what the unit counts."""
    return exact(number) if unit == MONEY else f"{number:,}"


def quantity(number: int, unit: str) -> str:
    """Return permits with the name of their unit, such as ``1,200 input tokens``, or as money."""
    name = unit.replace("_", " ")
    return exact(number) if unit == MONEY else f"{number:,} {name.removesuffix('s') if abs(number) == 1 else name}"


def _sign(number: int) -> str:
    return "-" if number < 0 else ""
