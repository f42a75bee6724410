"""
Money as people write and read it. It is counted in millionths of the installation's currency.

People write "1,234.50", or "1,234.50 USD". Commas or spaces separate thousands, as every page shows them, and a point
the decimals. What could mean two amounts is refused.
"""

import re

from django.conf import settings

from enforcement.model.metered import MONEY
from enforcement.model.money import MICROS, figure
from enforcement.model.sizes import MAX_NUMBER

_WHOLE = r"(?:[0-9]+|[1-9][0-9]{0,2}(?:(?P<between>[, \u00a0\u202f])[0-9]{3})(?:(?P=between)[0-9]{3})*)"
_AMOUNT = re.compile(rf"(?P<whole>{_WHOLE})?(?:\.(?P<decimals>[0-9]*))?")
_COUNT = re.compile(rf"-?{_WHOLE}")
_NAMED = r"([A-Za-z]{2,}|[$\u00a3\u20ac])?"
_NAMING = re.compile(rf"{_NAMED}\s*([^A-Za-z$\u00a3\u20ac]*?)\s*{_NAMED}")
_SIGNS = {"$": "USD", "\u00a3": "GBP", "\u20ac": "EUR"}
# Longer texts are no amounts, and would only be repeated in the message.
_LONGEST = 60


class InvalidAmount(ValueError):
    """A text that is no amount of money, or no number. The message is a sentence that says which rule it breaks."""


def read_amount(text: str, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """
    Return the millionths in an amount of money such as ``500``, ``1,234.50`` or ``500 USD``.

    Args:
        least, most: The bounds in millionths.
    Raises:
        InvalidAmount: It is no amount, could mean two, is of another currency, or is out of bounds.
    """
    text, given = text.strip(), f"got {text.strip()[:_LONGEST]!r}."
    found = _NAMING.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or not found[2]:
        raise InvalidAmount(f"Must be an amount such as 500.00, {given}")
    for named in filter(None, (found[1], found[3])):
        if _SIGNS.get(named, named.upper()) != settings.CURRENCY:
            raise InvalidAmount(f"Must be in {settings.CURRENCY}, the currency of this installation, {given}")
    number = found[2]
    if number.startswith(("-", "\N{MINUS SIGN}")):
        raise InvalidAmount(f"Must not be negative, {given}")
    parts = _AMOUNT.fullmatch(number)
    if parts is None or not (parts["whole"] or parts["decimals"]):
        raise InvalidAmount(f"{_reason(number)}, {given}")
    decimals = parts["decimals"] or ""
    if len(decimals) > 6:
        raise InvalidAmount(f"Must have at most 6 decimals, {given}")
    micros = _digits(parts["whole"] or "0") * MICROS + int(f"{decimals:0<6}")
    if not least <= micros <= most:
        bound = f"at most {exact(most)}" if micros > most else f"at least {exact(least)}"
        raise InvalidAmount(f"Must be {bound}, {given}")
    return micros


def read_count(text: str) -> int:
    """
    Return the number in a text such as ``1200`` or ``1,200``. It may be negative, as whatever it is for has a rule.

    Raises:
        InvalidAmount: It is no integer, or could mean two.
    """
    text = text.strip()
    if len(text) <= _LONGEST and _COUNT.fullmatch(text):
        return _digits(text)
    rule = "Must be an integer such as 1,200"
    if "," in text:
        rule += ", in which commas separate thousands"
    raise InvalidAmount(f"{rule}, got {text[:_LONGEST]!r}.")


def read_permits(text: str, unit: str, *, least: int = 0) -> int:
    """
    Return the permits of a unit in a text, which is an amount if the unit is money.

    Args:
        least: That of an amount, in millionths.
    Raises:
        InvalidAmount: It is neither an amount nor a number, as the unit needs it.
    """
    return read_amount(text, least=least) if unit == MONEY else read_count(text)


def _digits(text: str) -> int:
    return int(re.sub(r"[^0-9-]", "", text))


def _reason(number: str) -> str:
    """Return the rule that a text without a currency breaks, if it is no amount."""
    if "," in number and not re.search(r"[^0-9,. \u00a0\u202f]", number):
        return "Must have commas between thousands only, and a point before the decimals, such as 1,234.50"
    return "Must be an amount such as 500.00"


def amount(micros: int) -> str:
    """Return millionths as a decimal number of whole units, such as ``2.5`` for 2,500,000."""
    whole, rest = divmod(abs(micros), MICROS)
    return f"{'-' if micros < 0 else ''}{whole}.{rest:06d}".rstrip("0").rstrip(".")


def exact(micros: int) -> str:
    """Return millionths with at least two decimals, and the currency, such as ``0.075 USD``."""
    return f"{figure(micros)} {settings.CURRENCY}"


def rounded(micros: int) -> str:
    """Return a sum of millionths with two decimals, or all of them if it is below a cent, and the currency."""
    return exact(micros) if abs(micros) < 10_000 else f"{micros / MICROS:,.2f} {settings.CURRENCY}"


def permits(number: int, unit: str) -> str:
    """Return permits of a unit without its name, such as ``1,200``, or as money if that is what the unit counts."""
    return exact(number) if unit == MONEY else f"{number:,}"


def quantity(number: int, unit: str) -> str:
    """Return permits with the name of their unit, such as ``1,200 input tokens``, or as money."""
    name = unit.replace("_", " ")
    return exact(number) if unit == MONEY else f"{number:,} {name.removesuffix('s') if abs(number) == 1 else name}"
