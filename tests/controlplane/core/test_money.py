"""Money is counted in millionths and written in the currency of the installation."""

import pytest

from controlplane.core.money import amount, exact, permits, quantity, rounded


@pytest.mark.parametrize(
    ("micros", "plain", "whole", "short"),
    [
        (0, "0", "0.00 USD", "0.00 USD"),
        (1, "0.000001", "0.000001 USD", "0.000001 USD"),
        (2_500_000, "2.5", "2.50 USD", "2.50 USD"),
        (1_234_567_891, "1234.567891", "1,234.567891 USD", "1,234.57 USD"),
        (-5, "-0.000005", "-0.000005 USD", "-0.000005 USD"),
        (-1_850_000, "-1.85", "-1.85 USD", "-1.85 USD"),
    ],
)
def test_millionths_are_written_as_money(micros, plain, whole, short):
    """A settlement gives back more than a minute has charged, so that sums may be below zero."""
    assert (amount(micros), exact(micros), rounded(micros)) == (plain, whole, short)


@pytest.mark.parametrize(
    ("number", "unit", "bare", "named"),
    [
        (1_200, "input_tokens", "1,200", "1,200 input tokens"),
        (1, "requests", "1", "1 request"),
        (-30, "tokens", "-30", "-30 tokens"),
        (12_340_000, "micros", "12.34 CHF", "12.34 CHF"),
    ],
)
def test_permits_are_money_if_their_unit_is(settings, number, unit, bare, named):
    settings.CURRENCY = "CHF"
    assert (permits(number, unit), quantity(number, unit)) == (bare, named)
