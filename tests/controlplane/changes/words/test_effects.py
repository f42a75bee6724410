import pytest

from controlplane.changes.words.effects import changes_of, effect, field_changes, headline
from enforcement.model.limits import Limit
from enforcement.model.matching import Match

BASE = {"name": "a", "quota": 10, "window_seconds": 60}


def limit(**changed):
    return Limit(**{**BASE, **changed})


BUCKET = {"algorithm": "token_bucket", "burst": 20}
FULL = {"algorithm": "token_bucket"}
DENY, LEASED = {"on_store_failure": "deny"}, {"consistency": "leased"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (limit(), limit(quota=9), "tighter"),
        (limit(), limit(quota=11), "looser"),
        (limit(**BUCKET), limit(**{**BUCKET, "burst": 10}), "tighter"),
        (limit(**BUCKET), limit(quota=20, **{**BUCKET, "burst": 10}), "tighter"),
        (limit(), limit(window_seconds=30), "changed"),
        (limit(), limit(match=Match(path="/v1/*")), "changed"),
        (limit(), limit(consistency="leased"), "tighter"),
        (limit(consistency="leased"), limit(), "looser"),
        (limit(), limit(on_store_failure="deny"), "tighter"),
        (limit(), limit(on_store_failure="allow"), "looser"),
        (limit(quota=20), limit(on_store_failure="allow"), "tighter"),
        (limit(algorithm="token_bucket"), limit(algorithm="token_bucket", burst=10), "same"),
        (limit(unit="tokens"), limit(unit="tokens", weights={"input": 1000}), "same"),
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


def test_what_no_shadow_measures_is_not_started_as_one():
    """It decides nothing that a shadow counts. An outage is named as what the change is about."""
    changes = [changes_of([limit().to_json()], [limit(**one).to_json()])[0] for one in (DENY, LEASED, DENY | LEASED)]

    assert [(one.can_start_in_shadow, one.note) for one in changes] == [
        (False, "while the store is unavailable"),
        (False, ""),
        (False, ""),
    ]
    assert changes[0].was.endswith("; If the store is unavailable: each process enforces its share")
    assert changes[0].becomes.endswith("; If the store is unavailable: every request is denied")
    assert changes_of([limit().to_json()], [limit(quota=9, **DENY).to_json()])[0].can_start_in_shadow


def test_another_spelling_enforces_the_same():
    """It is listed, and the headline says that nothing else happens."""
    (change,) = changes_of([limit(**BUCKET).to_json()], [limit(**BUCKET).to_json()])
    (spelled,) = changes_of([limit(**FULL).to_json()], [limit(**FULL, burst=10).to_json()])

    assert (change.is_listed, headline("free", [change])) == (False, "free stays as it is")
    assert (spelled.is_listed, headline("free", [spelled])) == (True, "free enforces the same as before")


def test_the_order_of_limits_and_each_rule_for_metered_requests_is_told():
    """Those that stay are not told. The order decides whose name a denial has, and nothing else."""
    a, b = limit().to_json(), limit(name="b").to_json()
    before = {"limits": [a, b], "metering": {"default_cap": 100, "part_tokens": {"image": 1000}}}
    after = {"estimate": "bound", "part_tokens": {"image": 900}, "clamp_at_least": 50, "lost_after": 60}

    assert [
        (one.name, one.was, one.becomes, one.effect)
        for one in field_changes(before, {"limits": [b, a], "metering": after})
    ] == [
        ("Input estimate", "typical", "upper bound (denied if unbounded)", "changed"),
        ("Default output cap", "100 tokens", "standard", "changed"),
        ("Tokens per image", "1,000 tokens", "900 tokens", "changed"),
        ("When the client disconnects", "cancel the call", "read the response to the end", "changed"),
        ("Reduce output caps", "never (deny instead)", "down to 50 tokens", "changed"),
        ("Lost requests are settled as their estimates", "after 1 hour", "after 1 minute", "changed"),
        ("Order of limits", "a, b", "b, a", "same"),
    ]
    assert not list(field_changes({}, {"metering": {}}))
