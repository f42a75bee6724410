"""Ids of decisions are opaque, and only the fleet can make them."""

from base64 import urlsafe_b64decode
from dataclasses import replace

import pytest

from enforcement import Limit, Limiter
from enforcement.plan.decision import STATUSES
from enforcement.plan.decision_id import REASONS, DecisionFacts, DecisionKey, InvalidDecisionId, mark_of

SECRET = "a secret of the whole fleet"
KEY = DecisionKey(SECRET)
FACTS = DecisionFacts(
    at_ms=1_764_000_000_123,
    serial=7,
    reason="limited",
    source="store",
    revision=1_234,
    instance="proxy-7.rack-3",
    token="tok_01k9zq6v3e7f8g9h0jkmnpqrst",
    project_mark=mark_of("proj_01k9zq6v3e7f8g9h0jkmnpqrst"),
    limit="free-plan/requests-per-minute",
)


@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        replace(FACTS, token="tok_1", project_mark="", limit="", instance=""),
        replace(FACTS, token="", revision=0, reason="unknown_token", source="documents"),
        replace(FACTS, revision=2**53 - 1, serial=65_535, at_ms=0),
        replace(FACTS, instance="näme", limit="größe"),
    ],
    ids=["usual", "short", "refused", "greatest", "accents"],
)
def test_an_id_carries_its_facts(facts):
    """What was sealed is read, whatever has its place."""
    assert KEY.open(KEY.seal(facts)) == facts


def test_long_names_are_cut_at_their_beginning():
    """An id fits into a header field; the end of a name says more than its beginning."""
    found = KEY.seal(replace(FACTS, instance="host" * 20, limit="p" * 64 + "/" + "l" * 64, revision=2**53 - 1))
    facts = KEY.open(found)

    assert len(found) < 160
    assert facts.instance == "~" + ("host" * 20)[-17:]
    assert facts.limit == "~" + "l" * 39


def test_an_id_is_opaque():
    """Neither instance nor token nor limit can be read in it; two decisions have nothing in common."""
    first, second = (KEY.seal(replace(FACTS, serial=i)) for i in (1, 2))
    raw = urlsafe_b64decode(first[4:] + "=" * (-len(first[4:]) % 4))

    assert not any(word in raw for word in (b"proxy", b"free", b"minute"))
    assert sum(a == b for a, b in zip(first[4:], second[4:], strict=True)) < 15


def test_an_id_with_one_character_changed_is_refused():
    """Wherever the change is."""
    found = KEY.seal(FACTS)
    for i in range(4, len(found)):
        forged = found[:i] + ("A" if found[i] != "A" else "B") + found[i + 1 :]
        with pytest.raises(InvalidDecisionId, match="cut, altered or forged"):
            KEY.open(forged)


def test_a_cut_id_is_refused():
    """However much is missing, and also with something added."""
    found = KEY.seal(FACTS)
    for size in range(len(found)):
        with pytest.raises(InvalidDecisionId):
            KEY.open(found[:size])
    with pytest.raises(InvalidDecisionId):
        KEY.open(found + "A")


@pytest.mark.parametrize("text", ["", "dec_", None, 7, "dec_" + "ä" * 40, "dec_" + "A" * 400, "sg_live_abc", "dec_A A"])
def test_what_is_no_id_is_refused(text):
    """With the rule, and cut to what a terminal bears."""
    with pytest.raises(InvalidDecisionId, match="must be 'dec_' and 24 to 196 characters of base64url") as refused:
        KEY.open(text)
    assert len(str(refused.value)) < 200


def test_an_id_of_another_key_is_refused():
    """A fleet reads only its own."""
    with pytest.raises(InvalidDecisionId, match="made with this key"):
        DecisionKey(SECRET + "!").open(KEY.seal(FACTS))


@pytest.mark.parametrize("secret", ["", "too short", "x" * 257, None, 7])
def test_a_key_that_is_no_secret_is_refused(secret):
    """Without being shown."""
    with pytest.raises(ValueError, match="decision_key: must have 16 to 256 characters"):
        DecisionKey(secret)


def test_every_reason_has_a_code():
    """A reason without one would be read as another."""
    assert set(STATUSES) <= set(REASONS)


def test_limits_in_code_have_ids_by_a_key_of_their_own(server):
    """A decision has one id, however often it is read; two decisions have two."""
    limiter = Limiter(server.url, instance="worker-1", timeout=1.0, decision_key=SECRET)
    limit = Limit(name="never", quota=0, window_seconds=60)
    first, second = limiter.hit(limit, "user:42"), limiter.hit(limit, "user:43")
    facts = KEY.open(first.id)

    assert first.id == first.id == first.problem()["decision"] != second.id
    assert (facts.instance, facts.limit, facts.token, facts.revision) == ("worker-1", "never", "", 0)
    assert facts.at_ms == first.decided_at_us // 1_000
    limiter.close()


def test_without_a_key_ids_tell_decisions_apart_and_nobody_reads_them(server):
    """A store of 0.2 has no key; each process then makes one of its own."""
    limiter = Limiter(server.url, timeout=1.0)
    decision = limiter.hit(Limit(name="never", quota=0, window_seconds=60), "user:42")

    assert decision.id.startswith("dec_")
    with pytest.raises(InvalidDecisionId):
        KEY.open(decision.id)
    limiter.close()
