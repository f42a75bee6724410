"""What a reply says while others write: what its own request wrote, or what one moment held, and never a mixture."""

import threading
from functools import partial

import pytest
from django.db import connection

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from tests.controlplane.conftest import at_once, between_reads
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

WRITERS, ROUNDS = scale((6, 2), (20, 8))
PER_MINUTE = {"name": "per-minute", "algorithm": "sliding_window", "quota": 1, "window_seconds": 60}


def body(number: int) -> dict:
    """A version of the policy in which the name says the quota of the limit."""
    return {"name": f"quota {number}", "limits": [{**PER_MINUTE, "quota": number}]}


def is_whole(policy: dict) -> bool:
    return policy["name"] == f"quota {policy['limits'][0]['quota']}"


def until_it_is_done(web, policy: dict, key):
    """Repeat what was refused because SQLite was locked for too long, as on a host that is busy with other tests."""
    for _ in range(20):
        answer = web("PATCH", "policies/free", policy, key=key)
        if answer.status_code != 503:
            break
        assert "Nothing was changed. Try again." in answer.body["detail"]
    return answer


@pytest.mark.proof
def test_each_reply_says_what_its_own_writer_sent(web, key, store):
    """Body, ETag and version: a client may keep its copy with the ETag of its last reply."""
    policy = PolicyFactory(slug="free")
    versions = []

    for turn in range(ROUNDS):
        sent = [body(1 + turn * WRITERS + writer) for writer in range(WRITERS)]
        answers = at_once([partial(until_it_is_done, web, one, key) for one in sent])
        for one, answer in zip(sent, answers, strict=True):
            assert answer.status_code == 200
            assert (answer.body["name"], is_whole(answer.body)) == (one["name"], True)
            assert answer.headers["ETag"] == f'"{policy.pk}-{answer.body["version"]}"'
            versions.append(answer.body["version"])

    assert sorted(versions) == list(range(2, WRITERS * ROUNDS + 2))


@pytest.mark.proof
def test_no_acknowledged_conditional_write_is_reverted(web, key, store):
    """Two clients put their own copies with the ETags of their last replies, as RFC 9110 lets them."""
    PolicyFactory(slug="free", name="name 0", description="text 0")
    failures = []

    def client(field: str, word: str) -> None:
        answer, done = web("GET", "policies/free", key=key), 0
        while done < scale(4, 25):
            copy = {name: answer.body[name] for name in ("slug", "name", "description", "limits")}
            copy[field] = f"{word} {done + 1}"
            put = web("PUT", "policies/free", copy, key=key, if_match=answer.headers["ETag"])
            if put.status_code == 412:
                answer = web("GET", "policies/free", key=key)
                if answer.body[field] != f"{word} {done}":
                    failures.append(f"{field}: {word} {done} became {answer.body[field]}")
            else:
                answer, done = put, done + 1

    at_once([partial(client, "name", "name"), partial(client, "description", "text")])

    assert failures == []


@pytest.mark.parametrize("path", ["policies/free", "policies?page_size=200"], ids=["single", "list"])
def test_a_read_sees_one_moment(call, key, path):
    """A policy is never half of one version and half of the next, though its limits are read by a second query."""
    limit = LimitFactory(policy=PolicyFactory(slug="free", name="quota 1"), name="per-minute", quota=1)
    statuses = []

    def write() -> None:
        statuses.append(call("PATCH", "policies/free", body(2), key=key).status_code)
        connection.close()

    with connection.execute_wrapper(between_reads("policies_limit", write)):
        response = call("GET", path, key=key)

    found = response.json()
    policy = found["results"][0] if "results" in found else found
    assert statuses == [200]
    assert (policy["version"], policy["name"], policy["limits"][0]["quota"]) == (1, "quota 1", 1)
    limit.refresh_from_db()
    assert limit.quota == 2


@pytest.mark.proof
def test_readers_beside_a_writer_see_whole_policies(web, key):
    """The same over sockets, by chance."""
    PolicyFactory(slug="free")
    web("PATCH", "policies/free", body(1), key=key)
    ended = threading.Event()

    def write() -> int:
        for number in range(2, scale(12, 200)):
            web("PATCH", "policies/free", body(number), key=key)
        ended.set()
        return 0

    def read(path: str) -> int:
        mixed = 0
        while not ended.is_set():
            found = web("GET", path, key=key).body
            mixed += not all(is_whole(policy) for policy in found.get("results", [found]))
        return mixed

    readers = [partial(read, path) for path in ("policies/free", "policies?page_size=200")]
    assert at_once([write, *readers]) == [0, 0, 0]


DELETED = ["policy", "project", "token", "override", "limit of an override", "new token", "new", "next global policy"]


def patched(path: str):
    return [("PATCH", path, {"name": "New"}), ("DELETE", path, None)]


@pytest.mark.proof
@pytest.mark.parametrize("kind", DELETED)
def test_a_deletion_beside_a_write_is_no_server_error(web, key, store, kind):
    """The publication of the write waits for a store that hangs, and meanwhile its row is deleted."""
    store.freeze()
    for _ in range(scale(2, 20)):
        Project.objects.all().delete()
        Policy.objects.all().delete()
        token = TokenFactory(project=ProjectFactory(slug="chat"))
        limit = LimitFactory(policy=PolicyFactory(slug="free", everywhere=True), name="per-minute")
        override = OverrideFactory(limit=limit, token=token)
        PolicyFactory(slug="next")
        new = {"limit": "free/per-minute", "project": "chat", "quota": 1, "reason": "x"}
        requests = {
            "policy": patched("policies/free"),
            "project": patched("projects/chat"),
            "token": patched(f"tokens/{token.pk}"),
            "override": [
                ("PATCH", f"overrides/{override.pk}", {"quota": 7}),
                ("DELETE", f"overrides/{override.pk}", None),
            ],
            "limit of an override": [("POST", "overrides", new), ("DELETE", "policies/free", None)],
            "new token": [("POST", "projects/chat/tokens", {"name": "x"}), ("DELETE", "projects/chat", None)],
            "new": [("POST", "policies", {"slug": "new", "name": "N", "limits": []}), ("DELETE", "policies/new", None)],
            "next global policy": [("PUT", "global", {"policy": "next"}), ("DELETE", "policies/next", None)] * 2,
        }[kind]

        answers = at_once([partial(web, *request, key=key) for request in requests])

        for answer in answers:
            assert answer.status_code in (200, 201, 204, 400, 404, 409), answer


@pytest.mark.proof
def test_two_choices_of_the_global_policy_at_once_say_what_they_chose(web, key, store):
    """One after the other, or one is told that there was another."""
    for slug in ("a", "b", "c"):
        PolicyFactory(slug=slug, everywhere=slug == "c")
    for _ in range(scale(2, 20)):
        tag = web("GET", "global", key=key).headers["ETag"]
        calls = [
            partial(web, "PUT", "global", {"policy": chosen}, key=key, if_match=tag) for chosen in ("a", "b", None, "c")
        ]
        answers = at_once(calls)

        changed = [
            answer.body["policy"]
            for answer, chosen in zip(answers, ("a", "b", None, "c"), strict=True)
            if answer.status_code == 200 and answer.body == {"policy": chosen} and answer.headers["ETag"] != tag
        ]
        assert {answer.status_code for answer in answers} <= {200, 409, 412}
        assert len(changed) <= 1
        assert [web("GET", "global", key=key).body["policy"]] == (changed or ["c"])
        web("PUT", "global", {"policy": "c"}, key=key)


@pytest.mark.proof
def test_many_choices_of_the_global_policy_do_not_wait_for_each_other_in_a_circle(web, key, store):
    """Each is made in its turn, so the database ends none of them."""
    for slug in ("a", "b"):
        PolicyFactory(slug=slug)
    for _ in range(scale(3, 20)):
        answers = at_once([partial(web, "PUT", "global", {"policy": slug}, key=key) for slug in ("a", "b") * 4])

        assert [answer.status_code for answer in answers] == [200] * 8
        assert [answer.body["policy"] for answer in answers] == ["a", "b"] * 4
