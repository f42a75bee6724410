"""What people type as an amount, and what is refused because it is none or could mean two."""

import pytest

from controlplane.core.money import InvalidAmount, figure, read_amount, read_permits


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("500", 500_000_000),
        ("500.00", 500_000_000),
        ("500 USD", 500_000_000),
        ("USD 500", 500_000_000),
        ("500usd", 500_000_000),
        ("$500", 500_000_000),
        ("  500.00 usd ", 500_000_000),
        ("1,234.50", 1_234_500_000),
        ("1 234.50", 1_234_500_000),
        ("1\N{NO-BREAK SPACE}234.50 USD", 1_234_500_000),
        ("9,007,199,254.740991 USD", 2**53 - 1),
        ("0", 0),
        ("0.000001", 1),
        ("1.234", 1_234_000),
        (".5", 500_000),
    ],
)
def test_an_amount_is_read_as_it_is_shown(text, micros):
    assert read_amount(text) == micros
    assert read_amount(figure(micros)) == micros


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "Must be an amount such as 500.00, got ''."),
        ("much", "Must be an amount such as 500.00, got 'much'."),
        ("USD", "Must be an amount such as 500.00, got 'USD'."),
        ("1e3", "Must be an amount such as 500.00, got '1e3'."),
        ("nan", "Must be an amount such as 500.00, got 'nan'."),
        ("\N{FULLWIDTH DIGIT FIVE}", "Must be an amount such as 500.00"),
        ("+5", "Must be an amount such as 500.00"),
        ("5..0", "Must be an amount such as 500.00"),
        ("-5", "Must not be negative, got '-5'."),
        ("-5 USD", "Must not be negative"),
        ("\N{MINUS SIGN}5", "Must not be negative"),
        ("500 EUR", "Must be in USD, the currency of this installation, got '500 EUR'."),
        ("500 dollars", "Must be in USD, the currency of this installation"),
        ("\N{EURO SIGN}500", "Must be in USD, the currency of this installation"),
        ("0.0000001", "Must have at most 6 decimals, got '0.0000001'."),
        ("500,00", "Must have commas between thousands only, and a point before the decimals, such as 1,234.50"),
        ("0,500", "Must have commas between thousands only"),
        ("1.234,50", "Must have commas between thousands only"),
        ("1,23,456", "Must have commas between thousands only"),
        ("1,234 567", "Must have commas between thousands only"),
        ("9007199254.740992", "Must be at most 9,007,199,254.740991 USD, got '9007199254.740992'."),
        ("9" * 400, "Must be an amount such as 500.00"),
    ],
)
def test_what_is_no_amount_is_told_the_rule(text, rule):
    with pytest.raises(InvalidAmount) as told:
        read_amount(text)
    assert str(told.value).startswith(rule)


def test_the_bounds_are_named_as_money(settings):
    settings.CURRENCY = "CHF"
    with pytest.raises(InvalidAmount, match=r"Must be at least 0\.000001 CHF"):
        read_amount("0", least=1)
    with pytest.raises(InvalidAmount, match="Must be in CHF"):
        read_amount("5 USD")


@pytest.mark.parametrize(("text", "number"), [("1200", 1_200), ("1,200", 1_200), ("1 200", 1_200), ("-1", -1)])
def test_permits_of_another_unit_are_integers(text, number):
    """Their rules are those of the limit, as whether they may be negative."""
    assert read_permits(text, "requests") == number


@pytest.mark.parametrize("text", ["", "x", "500.00", "500 USD", "1,2", "0,500", "1e3", "9" * 400])
def test_permits_that_are_no_integer_are_refused(text):
    """Decimals are not dropped, so that what was typed as money never becomes a number of requests."""
    with pytest.raises(InvalidAmount, match=r"Must be an integer such as 1,200"):
        read_permits(text, "requests")
