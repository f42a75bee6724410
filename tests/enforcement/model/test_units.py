"""Units that a limit counts by mistake."""

import pytest

from enforcement.model.units import USUAL, meant, never_charged


@pytest.mark.parametrize(
    ("unit", "intended"),
    [
        ("usd", "micros"),
        ("dollars", "micros"),
        ("money", "micros"),
        ("usd_cents", "micros"),
        ("monthly-budget", "micros"),
        ("llm_tokens", "tokens"),
        ("token", "tokens"),
        ("total_tokens", "tokens"),
        ("prompt_tokens", "input_tokens"),
        ("input", "input_tokens"),
        ("completion_tokens", "output_tokens"),
        ("request", "requests"),
        ("api-calls", "requests"),
        ("reqests", "requests"),
        ("images", ""),
        ("gpu-seconds", ""),
    ],
)
def test_the_unit_that_was_meant(unit, intended):
    assert meant(unit) == intended


def test_other_currencies_and_units_that_are_charged():
    """The currency of an installation is money there, and what callers report may be mistyped, too."""
    assert (meant("pln"), meant("pln", currency="PLN")) == ("", "micros")
    assert (meant("imags"), meant("imags", charged=["images"])) == ("", "images")


def test_the_sentence_names_what_was_meant_or_what_is_usual():
    assert never_charged("usd", "money (USD)").endswith("admits all. Did you mean money (USD)?")
    assert never_charged("images", "").endswith(f"Usual units are {', '.join(USUAL)}.")
