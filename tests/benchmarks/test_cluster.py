"""The simulation of a fleet tells what was measured on clusters, and the command that measures them runs."""

import re
import subprocess
import sys
from functools import cache

import pytest

from benchmarks.cluster.command import PACES, PAGE, main
from benchmarks.cluster.fleet import BUSY, LEASED, STRICT, Costs, Fleet, lease_calls, node_of, to_a_million
from benchmarks.cluster.nodes import PROJECTS
from tests.repository import ROOT
from tests.scale import scale

COSTS = Costs(store=10, process=20, leased_process=2)
IDS = [f"proj_{number}" for number in range(1, PROJECTS + 1)]


@cache
def measured(heading: str) -> dict[str, list[str]]:
    """Return the rows of the tables below a heading of the page, by their first cell."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows}


def number(cell: str) -> float:
    return float(re.match(r"[\d.,]+", cell)[0].replace(",", ""))


@pytest.mark.parametrize("nodes", [3, 6])
def test_the_fullest_node_is_as_full_as_measured(nodes):
    """Its share of what all nodes use, with one limit and with a global one beside it."""
    rows = measured(f"{nodes} nodes")
    for name, everybody in (("own limit", None), ("own limit, global limit", STRICT)):
        _, calls, all_nodes, fullest = rows[name]
        by_node = Fleet(1_000, nodes, 1, projects=IDS, everybody=everybody).calls_by_node()

        assert sum(by_node) / 1_000 == pytest.approx(number(calls), rel=0.02)
        assert max(by_node) / sum(by_node) == pytest.approx(number(fullest) / number(all_nodes), rel=0.2)


@pytest.mark.parametrize("a_second", PACES)
def test_leases_cost_as_many_calls_as_measured(a_second):
    """Of one token, whose leases are real ones on a clock that jumps. The heartbeat of the process was counted, too."""
    calls = number(measured("One store")[f"{a_second} a second"][0])

    assert lease_calls(a_second) == pytest.approx(calls, rel=0.2, abs=1)


def test_the_page_has_the_table_of_the_simulation():
    """Of the figures of one store on the same page."""
    one = measured("One store")
    process, leased = number(one["check"][0]), number(one["check from a lease"][0])
    ways = {"tasks": "1 limit, 50 in flight on one connection, as tasks"}
    ways |= {"threads": "1 limit, 1 in flight on each of 50 connections, as threads"}

    rows = to_a_million({kind: Costs(number(one[way][0]), process, leased) for kind, way in ways.items()})

    found = measured("A million decisions a second")
    assert [row[0] for row in rows] == list(found)[2:]
    for name, *cells in rows:
        assert [number(cell) for cell in (cells[0], cells[2], cells[4])] == pytest.approx(
            [number(cell) for cell in (found[name][0], found[name][2], found[name][4])], rel=0.05
        )


@pytest.mark.parametrize(
    ("fleet", "first", "makes"),
    [
        (Fleet(1, 3, 1), "a process", 35_000),
        (Fleet(10**6, 3, 3, projects=["proj_1"]), "the fullest node", 70_000),
        (Fleet(10**6, 3, 100, projects=IDS, everybody=STRICT), "the node of the global limit", 52_500),
    ],
)
def test_what_is_full_first(fleet, first, makes):
    """A process at 20 us a decision, a node at 10 us a call. The one of the global limit has calls of others, too."""
    found = fleet.carries(COSTS)

    assert found == pytest.approx(makes, rel=0.05)
    busy = Fleet(**{**{name: getattr(fleet, name) for name in fleet.__slots__}, "decisions": found})
    assert busy.first(COSTS) == first
    assert max(busy.busy(COSTS).values()) <= BUSY


def test_a_busy_lease_costs_ten_calls_a_second():
    """However many decisions it makes: it is filled for a tenth of a second. A slow one is filled for a second."""
    assert [round(lease_calls(rate)) for rate in (20, 100, 400, 1_000)] == [1, 1, 4, 10]


def test_projects_lie_where_a_cluster_puts_them():
    """The slot of "foo" is 12182, as everybody's documentation says."""
    assert node_of("foo", 3) == 12_182 * 3 // 16_384
    assert [node_of("foo", nodes) for nodes in (1, 2, 16_384)] == [0, 1, 12_182]


def test_a_leased_fleet_asks_little():
    """A hundred processes that each have all tokens ask for each of them."""
    routed = Fleet(10**6, 3, 10, tokens=100, own=LEASED)
    spread = Fleet(10**6, 3, 10, tokens=100, own=LEASED, routed=False)

    assert sum(routed.calls_by_node()) == pytest.approx(1_000, rel=0.1)
    assert sum(spread.calls_by_node()) == pytest.approx(10_000, rel=0.1)


@pytest.mark.proof
@pytest.mark.skipif(scale(small=True, full=False), reason="starts nine servers: make proof")
def test_clusters_are_measured():
    """The quick run: every row has figures, and a plain decision costs one call."""
    command = [sys.executable, "-m", "benchmarks", "cluster", "--quick"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    calls = re.findall(r"\| own limit \| [\d.]+ us \| ([\d.]+) \|", done.stdout)
    assert [round(float(number), 1) for number in calls] == [1.0, 1.0]


@pytest.mark.parametrize("sizes", ["2", "3,x", "", "21"])
def test_sizes_that_are_none_are_refused(sizes, capsys):
    with pytest.raises(SystemExit):
        main(["--nodes", sizes])

    assert f"must be integers from 3 to 20, got {sizes!r}" in capsys.readouterr().err
