"""
A budget under a bound is never exceeded by the invoice of a provider, whatever its consumers try.

What the provider bills is computed by code that knows nothing of the product. ``python -m tests.adversary seeds --count
100`` plays more, and ``python -m tests.adversary mutants`` puts back all bugs of earlier releases.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from tests.adversary import honest, market
from tests.adversary.mutants import MUTANTS, change, source_of
from tests.repository import ROOT
from tests.scale import scale

PROOF = pytest.mark.skipif(not scale(False, True), reason="processes for each of them: make proof")
SEEDS = scale([("1", "micros")], [(str(number), "micros") for number in range(1, 11)] + [("11", "tokens")])
SIZE, KILLS = scale((3, 1), (20, 4))


def _imported(module: str) -> Iterator[str]:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("module", ["provider", "consumers"])
def test_the_invoice_knows_nothing_of_the_product(module):
    """Nothing but the standard library, and modules here of which that is true, too."""
    waiting, seen = [f"tests.adversary.{module}"], set[str]()
    while waiting:
        found = {*_imported(waiting.pop())} - seen
        seen |= found
        waiting += [name for name in found if name.startswith("tests.adversary.")]
    others = {name for name in seen if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.startswith("tests.adversary.") for name in others), others


@pytest.mark.proof
@pytest.mark.parametrize(("seed", "unit"), SEEDS)
def test_no_budget_is_exceeded_by_the_invoice(seed, unit):
    """Each trick has a budget, two proxies serve them, and one of these is killed now and then."""
    rows = market.run(seed, size=SIZE, kills=KILLS, unit=unit)

    assert [(row.script.name, row.faults) for row in rows if row.faults] == [], market.table(rows)
    assert max(row.ratio for row in rows) > 0.9, "tries too little to be a proof"


@PROOF
@pytest.mark.proof
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_honest_clients_use_a_hard_budget(seed):
    """Recorded traffic, of which a twentieth leaves, under a budget of 30 median reservations."""
    used = honest.use(seed)

    assert used.invoice <= used.charged <= used.budget
    assert used.ratio >= 0.85, used


@PROOF
@pytest.mark.proof
def test_each_bug_can_be_put_back():
    """All changes fit the present source."""
    for mutant in MUTANTS:
        for module in {name for name, _, _ in mutant.changes}:
            compile(change(module, source_of(module), mutant.changes), module, "exec")


@PROOF
@pytest.mark.proof
@pytest.mark.parametrize("mutant", MUTANTS[::4], ids=lambda mutant: mutant.name)
def test_a_bug_that_is_put_back_is_noticed(mutant):
    rows = market.run("1", size=12, kills=0, names=mutant.scripts, mutant=mutant.name, proxies=1)

    assert any(row.faults for row in rows), market.table(rows)
