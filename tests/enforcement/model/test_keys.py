"""Every key that the library can make: short, one for each meaning, and with a hash tag that no tenant has a say in."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement.engine.heartbeat import Identity
from enforcement.model.documents import Policy, ProjectDocument, TokenDocument
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.partitions import life_us
from enforcement.model.sizes import MAX_INSTANCE_LENGTH, MAX_KEY_BYTES
from enforcement.model.tokens import digest, mint
from enforcement.plan.binding import bind_in_code
from enforcement.plan.rules import Subject, rules_of
from enforcement.settings import Settings
from tests.scale import scale

# What is drawn is nasty on purpose, so that two partitions with one key show within a hundred pairs.
EXAMPLES = scale(100, 5_000)
KEYS = Keys("p" * 16)
PROJECT = "proj_" + "7" * 35
LONGEST = "é" * 1_024
# What joins, escapes or ends something in one place or another, and what is no character at all.
NASTY = [
    "",
    "a",
    "b",
    "ab",
    ":",
    "a:",
    "1:a",
    "{",
    "}",
    "}{x}",
    "overflow",
    "global",
    "user",
    "userb",
    "\0",
    "\r\n",
    "\ud800",
    "é",
    LONGEST,
]
values = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=40))
names = st.text(string.ascii_letters + string.digits + "._:/-", min_size=1, max_size=64).map(
    lambda text: "n" + text[1:]
)
attributes = st.lists(st.sampled_from(["ip", "model", "user", "header.x-team"]), max_size=4, unique=True).map(tuple)
algorithms = st.sampled_from(["fixed_window", "sliding_window", "sliding_log", "token_bucket", "concurrency"])


def hash_tag(key):
    """Return the part of a key that names its slot, found as the store finds it."""
    return re.search(r"\{([^}]*)\}", key)[1]


@st.composite
def meanings(draw):
    """Draw a limit somewhere, and the values that one request has for its attributes."""
    return (
        draw(st.sampled_from(["global", "project", "token"])),
        draw(st.sampled_from(["pol_1", "pol_2", "pol_1x"])),
        draw(st.sampled_from(["tok_1", "tok_2"])),
        draw(names),
        draw(algorithms),
        tuple((name, draw(values)) for name in draw(attributes)),
    )


def bound_of(meaning, *, overflow=False):
    """Bind a limit as an enforcer does, and return its counter and its census."""
    scope, policy_id, token_id, name, algorithm, partition = meaning
    limit = Limit(
        name=name, algorithm=algorithm, quota=9, window_seconds=60, partition_by=[key for key, _ in partition]
    )
    policies = {policy_id: Policy(policy_id, "any", (limit,))}
    attached = {one: policy_id if one == scope else None for one in ("global", "project", "token")}
    project = ProjectDocument(PROJECT, "shop", True, attached["project"])
    token = TokenDocument(token_id, PROJECT, "t", attached["token"], False, None)
    (rule,) = rules_of(Subject(project, token, policies, attached["global"]), 0)
    census = rule.partitions(KEYS)
    if overflow and census:
        return rule.overflow(census), census
    return rule.bind(KEYS, dict(partition), census), census


def identity(meaning):
    """Return what a counter is kept for; tokens have a part in it only where the limit is theirs."""
    scope, policy_id, token_id, name, algorithm, partition = meaning
    return scope, policy_id, token_id if scope == "token" else "", name, algorithm, partition


@pytest.mark.proof
@settings(max_examples=EXAMPLES, deadline=None)
@given(meanings())
def test_keys_are_short_and_their_tag_is_the_projects(meaning):
    """Whatever a request carries: 128 bytes at most, and only the project or "global" between the braces."""
    bound, census = bound_of(meaning)
    keys = [bound.key, *([census.key, census.overflowed, census.overflow] if census else [])]

    assert all(len(key.encode()) <= MAX_KEY_BYTES for key in keys)
    assert {hash_tag(key) for key in keys} == {"global" if meaning[0] == "global" else PROJECT}
    assert all(re.fullmatch(r"p{16}\{\w+\}:[cno]:[0-9a-f]{24}", key, re.ASCII) for key in keys)


@pytest.mark.proof
@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(meanings(), meanings())
def test_two_partitions_share_no_key(one, other):
    """Nor a name in the census; and what is the same has the same."""
    (first, _), (second, _) = bound_of(one), bound_of(other)

    assert (first.key == second.key) == (identity(one) == identity(other))
    if first.partitions == second.partitions and one[5] and identity(one)[2] == identity(other)[2]:
        assert (first.value == second.value) == (one[5] == other[5])


@pytest.mark.parametrize("first", NASTY)
def test_values_cannot_be_shifted_from_one_attribute_to_the_next(first):
    """("a", "bc") is not ("ab", "c"), nor is one attribute another that has the same value."""
    meaning = ("token", "pol_1", "tok_1", "n", "fixed_window")
    others = [(("ip", a), ("user", b)) for a in NASTY for b in NASTY]
    keys = {bound_of((*meaning, partition))[0].key for partition in others}

    assert len(keys) == len(others)
    assert bound_of((*meaning, (("ip", first),)))[0].key != bound_of((*meaning, (("user", first),)))[0].key


@pytest.mark.proof
@settings(max_examples=EXAMPLES, deadline=None)
@given(meanings())
def test_no_value_is_the_overflow_counter(meaning):
    """Nobody can name themselves into the counter that others share."""
    bound, census = bound_of(meaning)
    if census:
        assert bound.key != census.overflow
        assert bound_of(meaning, overflow=True)[0].key == census.overflow
        assert life_us(bound.limit) >= 60_000_000


@pytest.mark.proof
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=60), st.text(st.characters(), min_size=1, max_size=60))
def test_a_key_in_code_is_a_digest(one, other):
    """Its tag says nothing of what it stands for, and two of them share no counter."""
    limit = Limit(quota=1, window_seconds=60)
    (first,), (second,) = bind_in_code([limit], one, KEYS), bind_in_code([limit], other, KEYS)

    assert re.fullmatch(r"[0-9a-f]{22}", hash_tag(first.key), re.ASCII)
    assert len(first.key) <= MAX_KEY_BYTES
    assert (first.key == second.key) == (one == other)


def test_all_other_keys_are_short_too():
    """With the longest prefix, project and instance, and after a fork."""
    longest = Identity(id="i" * MAX_INSTANCE_LENGTH, host="h", pid=1, version="1").of_child().id
    tag = "proj_" + "7" * 35
    keys = [
        *(KEYS.documents, KEYS.log, KEYS.instances, KEYS.usage, KEYS.token(digest(mint("live")))),
        *(KEYS.instance(longest), KEYS.lock("publish"), KEYS.fence("publish"), KEYS.dirty(tag)),
        *KEYS.census(tag, ("x",)),
        KEYS.scope(tag) + "m:" + "0" * 32,
    ]

    assert max(len(key.encode()) for key in keys) <= MAX_KEY_BYTES
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["", "i" * 81, "a b", "a\nb", "é", "\x7f"])
def test_an_instance_has_a_name_that_fits_into_a_key(name):
    """One that does not is refused where it is given."""
    with pytest.raises(ValueError, match="instance"):
        Settings(instance=name)
    assert Settings.from_env({"SLUICEGATE_INSTANCE": ""}).instance is None
