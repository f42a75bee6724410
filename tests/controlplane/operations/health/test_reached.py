"""Which instances have a change, in a sentence."""

import pytest

from controlplane.operations.health.reached import Reached, reached, sentence
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance

STILL = "admits this token"


def fleet_of(**revisions):
    return Fleet(Instance(id=name, revision=revision) for name, revision in revisions.items())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Reached(False), "Saved, and not published yet: every instance still admits this token."),
        (Reached(True), "No instance reports."),
        (Reached(True, ["a"]), "The only instance has it."),
        (Reached(True, ["a", "b", "c"]), "All 3 instances have it."),
        (Reached(True, ["a"], ["b"]), "1 of 2 instances have it; b still admits this token."),
        (Reached(True, ["a"], ["b", "c"]), "1 of 3 instances have it; b and c still admit this token."),
        (
            Reached(True, [], ["b", "c", "d", "e"]),
            "0 of 4 instances have it; b, c and 2 more still admit this token.",
        ),
        (
            Reached(True, ["a", "b"], [], ["z"]),
            "All 2 instances have it; z is lost, so nobody knows.",
        ),
        (
            Reached(True, unknown="The store does not answer."),
            "Nobody knows which instances have it. The store does not answer.",
        ),
    ],
)
def test_nobody_says_every_before_it_is_so(found, said):
    """Those that lack it are named."""
    assert sentence(found, STILL) == said
    assert found.is_everywhere is said.endswith(("have it.", "has it."))


def test_who_may_not_see_instances_reads_their_number():
    """Not the names, nor that one is lost."""
    found = Reached(True, ["a"], ["b"], ["z"])

    assert sentence(found, STILL, names=False) == "1 of 2 instances have it; an operator sees which."


def test_how_far_a_revision_has_come():
    """An instance with a later one has it, too. One that is lost is not one that has it."""
    fleet = fleet_of(us_1=7, us_2=6, us_3=8)

    found = reached(Revision(number=7), fleet, [Instance(id="us_2"), Instance(id="us_4")])

    assert (found.have, found.lack, found.lost) == (["us_1", "us_3"], ["us_2"], ["us_4"])
    assert reached(None, fleet).is_published is False
