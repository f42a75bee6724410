"""What an enforcer knows: bad documents change nothing, and tokens are cached in bounds and in truth."""

from __future__ import annotations

import functools

import pytest

from enforcement.model.documents import InvalidDocument, parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.published import PublishedState
from tests.enforcement.published import DIGEST, changes, policy, project, state, token

BROKEN = {
    "not a number": dumps(policy()).replace("100", "NaN"),
    "infinite": dumps(policy()).replace("100", "1e999"),
    "a fraction": dumps(policy()).replace("100", "1.5"),
    "a truth value": dumps(policy()).replace("100", "true"),
    "a key twice": dumps(policy()).replace('"quota":100', '"quota":100,"quota":101'),
    "a text": dumps(policy()).replace("100", '"100"'),
    "beyond what doubles hold": dumps(policy(2**53)),
    "of more digits than are read": dumps(policy()).replace("100", "1" * 5_000),
    "below nothing": dumps(policy(-1)),
    "of a later schema": dumps({**policy(), "schema": 2}),
    "of a schema that is true": dumps({**policy(), "schema": True}),
    "of an unknown algorithm": dumps(policy()).replace("fixed_window", "leaky_bucket"),
    "without an algorithm": dumps(policy()).replace('"algorithm":"fixed_window",', ""),
    "without limits": dumps({name: value for name, value in policy().items() if name != "limits"}),
    "with an unknown field": dumps({**policy(), "unlimited": 1}),
    "with a bound that is no number": dumps({**policy(), "unused_max": {"rpm": "10"}}),
    "with bounds that are a list": dumps({**policy(), "unused_max": [10]}),
    "of another id": dumps(policy(ident="pol_2")),
    "nested too deeply": "[" * 100_000 + "]" * 100_000,
    "nested a little too deeply": dumps({**policy(), "name": functools.reduce(lambda inner, _: [inner], range(20), 0)}),
    "with NUL": dumps({**policy(), "name": "Go\0ld"}),
    "with half a pair": dumps({**policy(), "name": "Go\ud800ld"}),
    "with half a pair in a key": dumps(policy()).replace('"quota"', '"quo\\udfffta"'),
    "followed by more": dumps(policy()) * 2,
    "a list": f"[{dumps(policy())}]",
    "too long": dumps({**policy(), "name": "x" * 10_000_000}),
    "not text": b'{"schema":1,"id":"\xff\xfe"}',
    "empty": "",
}


@pytest.fixture
def documents() -> PublishedState:
    known = PublishedState()
    assert known.load(state(5)) == []
    return known


def quota_of(documents: PublishedState) -> int:
    return documents.current.policies["pol_1"].limits[0].quota


@pytest.mark.parametrize(("numbers", "said"), [({"burst": 0}, "burst.* from 1"), ({"quota": -1}, "quota.* from 0")])
def test_an_override_out_of_bounds_is_refused(numbers: dict[str, int], said: str) -> None:
    """A quota of 0 denies all; a bucket that holds nothing is no bucket."""
    override = {"id": "ovr_1", "policy": "pol_1", "limit": "rpm", "quota": 0, "burst": 1, "ends_at_us": None}
    assert parse_token(dumps(token(overrides=[override]))).overrides[0].quota == 0

    with pytest.raises(InvalidDocument, match=said):
        parse_token(dumps(token(overrides=[{**override, **numbers}])))


def test_load_takes_a_whole_state(documents: PublishedState) -> None:
    """A complete load makes policies and projects known by id, with the revision and the store they are from."""
    assert (documents.current.revision, documents.current.store_id) == (5, "store-1")
    assert quota_of(documents) == 100
    assert documents.current.projects["proj_1"].policy == "pol_1"
    assert documents.current.global_policy is None
    assert (documents.loaded, documents.generation) == (True, 1)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_document_keeps_its_last_good_version(documents: PublishedState, broken: str) -> None:
    """A document that breaks a rule is reported and changes nothing; the others of that load are taken."""
    problems = documents.load(state(6, **{"policy:pol_1": broken, "policy:pol_2": dumps(policy(7, "pol_2"))}))

    assert [problem.document for problem in problems] == ["policy:pol_1"]
    assert quota_of(documents) == 100
    assert documents.current.policies["pol_2"].limits[0].quota == 7
    assert documents.current.revision == 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("not a number", "numbers must be integers, got NaN"),
        ("infinite", "numbers must be integers, got 1e999"),
        ("a key twice", "quota: must occur only once"),
        ("of a schema that is true", "schema: must be 1, got True"),
        ("of an unknown algorithm", "limit algorithm: Must be one of "),
        ("without limits", "limits: is required"),
        ("with an unknown field", "unlimited: unknown field"),
        ("nested a little too deeply", "must have at most 20 levels of nesting"),
        ("with NUL", "strings must not contain NUL or half of a surrogate pair"),
        ("with half a pair in a key", "strings must not contain NUL or half of a surrogate pair"),
        ("too long", "must have at most 65536 characters, got 10000"),
        ("not text", "strings must not contain NUL or half of a surrogate pair"),
    ],
)
def test_a_refusal_names_the_rule(documents: PublishedState, name: str, reason: str) -> None:
    """An operator reads it in the log, and finds the document by it."""
    (problem,) = documents.load(state(6, **{"policy:pol_1": BROKEN[name]}))

    assert problem.reason.startswith(reason)


@pytest.mark.parametrize("revision", ["", "0", "-1", "1.5", "NaN", "9" * 17, "٣"])
def test_unreadable_revision_refuses_the_whole_state(documents: PublishedState, revision: str) -> None:
    """Without a revision nobody can say what is obeyed, so all stays as it was."""
    problems = documents.load({**state(6, quota=1), "revision": revision})

    assert [problem.whole for problem in problems] == [True]
    assert (documents.current.revision, quota_of(documents), documents.generation) == (5, 100, 1)


def test_first_state_with_a_broken_global_document_is_refused() -> None:
    """Taking an unreadable global document for none would lift its limits from every request."""
    documents = PublishedState()

    problems = documents.load(state(**{"global": '{"schema":2}'}))

    assert [(problem.document, problem.whole) for problem in problems] == [("global", True)]
    assert not documents.loaded


def test_broken_document_that_was_never_good_is_missing() -> None:
    """There is no last good version to keep, so a reader finds nothing and must refuse."""
    documents = PublishedState()

    documents.load(state(**{"policy:pol_1": "{}"}))

    assert "pol_1" not in documents.current.policies
    assert documents.current.projects["proj_1"].policy == "pol_1"


def test_log_entry_changes_and_removes_documents(documents: PublishedState) -> None:
    """An entry that follows the present revision is applied without asking the store for more."""
    assert documents.apply(6, changes(documents={"policy:pol_1": policy(150), "project:proj_1": None}))

    assert quota_of(documents) == 150
    assert dict(documents.current.projects) == {}
    assert (documents.current.revision, documents.generation) == (6, 2)


@pytest.mark.parametrize(
    ("revision", "entry"),
    [
        (7, changes()),
        (6, changes(full=True)),
        (6, changes(schema=2)),
        (6, changes(documents={"policy:pol_1": {**policy(), "schema": 2}})),
        (6, changes(documents={"secret:pol_1": policy()})),
        (6, changes(tokens=[1])),
        (6, changes(documents={"policy:pol_1": policy(7)}).replace(":7,", ":7,  ")),
        (6, changes().replace('"full":false', '"full":false,"full":false')),
        (6, changes() + "x"),
        (6, "[" * 100_000),
        (6, b"\xff"),
        (6, changes(tokens=["x" * 600_000])),
    ],
    ids=[
        "gap", "full", "schema", "broken", "kind", "tokens", "blanks", "twice", "rest", "deep", "bytes", "long",
    ],
)  # fmt: skip
def test_entry_that_cannot_be_applied_asks_for_a_load(documents: PublishedState, revision: int, entry: str) -> None:
    """A gap, an order to load everything, or whatever is not read strictly: nothing changes, a load is needed."""
    assert documents.apply(revision, entry) is False
    assert (documents.current.revision, documents.generation, quota_of(documents)) == (5, 1, 100)


def test_entry_that_is_known_already_changes_nothing(documents: PublishedState) -> None:
    """A log is read again after a reconnect; what was obeyed before is passed over."""
    assert documents.apply(4, changes(documents={"policy:pol_1": policy(1)})) is True
    assert (documents.current.revision, quota_of(documents)) == (5, 100)


def test_token_is_remembered_until_an_entry_names_it(documents: PublishedState) -> None:
    """A revocation is an entry that names the token: the next request asks the store anew."""
    documents.remember(DIGEST, dumps(token()), documents.generation)
    assert documents.find(DIGEST).token.name == "ci"

    documents.apply(6, changes(tokens=[DIGEST]))

    assert documents.find(DIGEST) is None


def test_answer_that_a_change_overtook_is_not_kept(documents: PublishedState) -> None:
    """The document was read before the revocation and arrives after it: keeping it would undo the revocation."""
    asked_at = documents.generation
    documents.apply(6, changes(tokens=[DIGEST]))

    assert documents.remember(DIGEST, dumps(token()), asked_at).token is not None
    assert documents.find(DIGEST) is None

    documents.remember(DIGEST, dumps(token(revoked=True)), documents.generation)
    assert documents.find(DIGEST).token.revoked


def test_load_replaces_all_tokens(documents: PublishedState) -> None:
    """Whoever missed a part of the log may have missed a revocation: each known token is read again, others go."""
    for digest in ("kept", "changed", "gone", "unread"):
        documents.remember(digest, dumps(token()), documents.generation)
    kept = documents.find("kept")

    documents.load(state(6), {"kept": dumps(token()), "changed": dumps(token(revoked=True)), "gone": None})

    assert documents.find("kept") is kept
    assert documents.find("changed").token.revoked
    assert documents.find("gone") is documents.find("unread") is None


def test_load_keeps_a_token_whose_document_broke(documents: PublishedState) -> None:
    """Also a token keeps its last good version, and the problem is reported."""
    documents.remember(DIGEST, dumps(token()), documents.generation)

    problems = documents.load(state(6), {DIGEST: b'{"schema":2}'})

    assert [problem.document for problem in problems] == [f"token:{DIGEST}"]
    assert documents.find(DIGEST).token.id == "tok_1"


def test_unknown_token_is_believed_for_five_seconds() -> None:
    """A negative answer spares the store, and lasts no longer than five seconds."""
    now = 100.0
    documents = PublishedState(clock=lambda: now)
    documents.remember(DIGEST, None, documents.generation)
    assert (documents.find(DIGEST).token, documents.find(DIGEST).problem) == (None, "")

    now = 105.0

    assert documents.find(DIGEST) is None


def test_unreadable_token_is_neither_known_nor_unknown(documents: PublishedState) -> None:
    """A token's document that breaks a rule says so: it must not be admitted, nor be called unknown."""
    entry = documents.remember(DIGEST, dumps(token()).replace("false", "0"), documents.generation)

    assert entry.token is None
    assert entry.problem == "revoked: must be true or false"


def test_token_cache_is_bounded_and_keeps_what_is_used(documents: PublishedState) -> None:
    """At most 10,000 tokens are kept; one that is asked for stays when the room is needed."""
    text = dumps(token())
    documents.remember("first", text, 1)
    documents.remember("second", text, 1)
    for number in range(9_998):
        documents.remember(str(number), text, 1)
    documents.find("first")

    documents.remember("one more", text, 1)

    assert len(documents.cached()) == 10_000
    assert documents.find("second") is None
    assert documents.find("first") is not None


def test_invented_tokens_do_not_push_out_known_ones(documents: PublishedState) -> None:
    """Unknown tokens have a bounded cache of their own, the oldest goes first."""
    documents.remember(DIGEST, dumps(token()), 1)
    for number in range(10_001):
        documents.remember(str(number), None, 1)

    assert documents.find("0") is None
    assert documents.find("1") is not None
    assert documents.find(DIGEST).token is not None


def test_project_is_read_strictly(documents: PublishedState) -> None:
    """A project that claims another id is refused like a policy."""
    problems = documents.load(state(6, **{"project:proj_1": dumps(project("proj_2"))}))

    assert [problem.reason for problem in problems] == ["id: must be the id in the document's name, got 'proj_2'"]


def test_a_global_document_that_got_lost_lifts_no_limits(documents: PublishedState) -> None:
    """What is missing is unknown: it is reported, and the last choice stays, as that of a document that broke does."""
    chosen = dumps({"schema": 1, "policy": "pol_1"})
    assert documents.load(state(6, **{"global": chosen})) == []

    problems = documents.load(state(7))

    assert [(problem.document, problem.whole) for problem in problems] == [("global", False)]
    assert (documents.current.revision, documents.current.global_policy) == (7, "pol_1")


def test_no_policy_is_global_if_the_document_says_so(documents: PublishedState) -> None:
    """A choice that was taken back is written down, not left out."""
    documents.load(state(6, **{"global": dumps({"schema": 1, "policy": "pol_1"})}))

    assert documents.load(state(7, **{"global": dumps({"schema": 1, "policy": None})})) == []

    assert documents.current.global_policy is None
