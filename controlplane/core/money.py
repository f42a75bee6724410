"""Money as people write it. It is counted in millionths of the installation's currency."""

from django.conf import settings


def amount(micros: int) -> str:
    """Return millionths as a decimal number of whole units, such as ``2.5`` for 2,500,000."""
    whole, rest = divmod(micros, 1_000_000)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".")


def exact(micros: int) -> str:
    """Return millionths with at least two decimals, and the currency, such as ``0.075 USD``."""
    whole, _, decimals = amount(micros).partition(".")
    return f"{int(whole):,}.{decimals:0<2} {settings.CURRENCY}"


def rounded(micros: int) -> str:
    """Return a sum of millionths with two decimals, or all of them if it is below a cent, and the currency."""
    return exact(micros) if micros < 10_000 else f"{micros / 1_000_000:,.2f} {settings.CURRENCY}"
