"""The figures of the page "Capacity" are those that were measured, and what follows from them is worked out right."""

import re

import pytest

from controlplane.web.site import docs
from tests.repository import ROOT

PAGE = (docs.FOLDER / "capacity.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    return rows[2:]


@pytest.mark.parametrize("row", table("Measured"), ids=lambda row: row[0])
def test_a_quoted_figure_is_one_that_was_measured(row):
    """Whoever measures again changes the page, too."""
    _, value, file, name = row

    measured = [
        line for line in (ROOT / "benchmarks" / file).read_text().splitlines() if line.startswith(f"| {name} |")
    ]

    assert len(measured) == 1
    assert re.search(rf"(?<![\d.,]){re.escape(value)}(?![\w.])", measured[0])


@pytest.mark.parametrize("row", table("What one of each carries"), ids=lambda row: row[0])
def test_what_one_carries_follows_from_quoted_figures(row):
    """Each term is 70 %, a change of units, or a figure of the table above. The result is rounded to three digits."""
    _, carries, because = row
    assert re.fullmatch(r"[\d.,]+( [*/] [\d.,]+)+", because)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d.,]+", because)]
    quoted = {float(re.match(r"[\d.]+", value.replace(",", ""))[0]) for _, value, *_ in table("Measured")}
    units = {0.7, 1000, 1_000_000, 1_073_741_824}

    result = numbers[0]
    for sign, number in zip(re.findall(r"[*/]", because), numbers[1:], strict=True):
        result = result * number if sign == "*" else result / number

    assert all(number in units or number in quoted or number / 1000 in quoted for number in numbers)
    assert float(f"{result:.3g}") == float(carries.split()[0].replace(",", ""))


def test_the_way_to_a_million_is_the_simulated_one():
    """Whoever measures clusters again changes the page, too."""
    measured = (ROOT / "benchmarks" / "RESULTS-CLUSTER.md").read_text()

    assert all(f"| {' | '.join(row)} |" in measured for row in table("A million decisions a second"))


def test_the_example_is_worked_out_right():
    """Each equation holds, to the digits that it gives."""
    text = " ".join(PAGE.partition("\n## A worked example\n")[2].split())
    equations = re.findall(r"(\d[\d.,]*(?: [-+*/] \d[\d.,]*)+) = (\d[\d.,]*\d)", text)
    assert len(equations) == 5

    for sum_, result in equations:
        numbers = [float(number.replace(",", "")) for number in re.split(r" [-+*/] ", sum_)]
        value = numbers[0]
        for sign, number in zip(re.findall(r" ([-+*/]) ", sum_), numbers[1:], strict=True):
            value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[sign]
        digits = len(re.sub(r"\D", "", result).rstrip("0"))
        assert float(f"{value:.{digits}g}") == float(result.replace(",", "")), sum_
