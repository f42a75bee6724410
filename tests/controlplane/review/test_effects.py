import pytest

from controlplane.review.effects import changes_of, effect, headline
from enforcement.model.limits import Limit
from enforcement.model.matching import Match

BASE = {"name": "a", "quota": 10, "window_seconds": 60}


def limit(**changed):
    return Limit(**{**BASE, **changed})


BUCKET = {"algorithm": "token_bucket", "burst": 20}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (limit(), limit(quota=9), "tighter"),
        (limit(), limit(quota=11), "looser"),
        (limit(**BUCKET), limit(**{**BUCKET, "burst": 10}), "tighter"),
        (limit(**BUCKET), limit(quota=20, **{**BUCKET, "burst": 10}), "tighter"),
        (limit(), limit(window_seconds=30), "changed"),
        (limit(), limit(match=Match(path="/v1/*")), "changed"),
        (limit(), limit(consistency="leased"), "changed"),
        (limit(mode="shadow"), limit(), "enforced"),
        (limit(), limit(mode="shadow"), "shadow only"),
        (limit(mode="shadow"), limit(mode="shadow", quota=9), "changed, in shadow"),
        (None, limit(), "new"),
        (None, limit(mode="shadow"), "new, in shadow"),
        (limit(), None, "removed"),
        (limit(mode="shadow"), None, "same"),
        (limit(), limit(), "same"),
    ],
)
def test_each_change_has_an_effect(before, after, expected):
    """What is denied gets more, less, or something else; a shadow denies nothing."""
    assert effect(before, after) == expected


def test_the_headline_names_the_first_felt_change():
    """The most important thing stands first, the others are counted."""
    before = [limit(quota=25).to_json(), limit(name="b").to_json()]
    after = [limit(quota=10).to_json(), limit(name="c", mode="shadow").to_json()]

    changes = changes_of(before, after)

    assert [(one.name, one.effect) for one in changes] == [("a", "tighter"), ("c", "new, in shadow"), ("b", "removed")]
    assert headline("free", changes) == "free gets tighter: 25 becomes 10 (a), and 1 more"
