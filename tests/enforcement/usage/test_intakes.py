"""How usage reaches the intake of a project, from an account of the store that may not write where all write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from enforcement.embedded import ValkeyServer
from enforcement.engine.duties import UsageDelivery
from enforcement.model.documents import parse_token
from enforcement.model.keys import Keys
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.store.client import connect
from enforcement.store_calls.acl import enforcer
from enforcement.usage.batch import OutgoingBatch, as_json
from enforcement.usage.counts import UsageLog
from enforcement.usage.intakes import by_project, denials_by_project, id_in_intake
from tests.enforcement.published import token

KEYS = Keys()
MINUTE = 29_000_000
A, B = "proj_a", "proj_b"
Delivery = Callable[..., UsageDelivery]


def total(project: str, allowed: int = 1) -> list[object]:
    return [MINUTE, project, "tok_1", "", "", "requests", allowed, 0, 0, allowed]


def test_a_batch_is_divided_by_project() -> None:
    """Each spread stays with its row, and samples are of no use there."""
    rows = [total(A), total(B), [MINUTE, A, "tok_1", "pol_1", "rpm", "requests", 1, 0, 0, 1], total(A, 2)]
    spread = [[1, 4, 1, 0, 0, 0, 0, 0], [3, 2, 2, 0, 0, 0, 0, 0]]
    metered, broken = [[MINUTE, B, "tok_1"]], [[MINUTE, "proj_c", "gpt"]]
    batch = OutgoingBatch("id-1", "proxy-1", *map(as_json, (rows, metered, spread, broken)), "[1]", 3)

    divided = by_project(batch)

    assert list(divided) == [A, B, "proj_c"]
    assert divided[A] == OutgoingBatch(
        "id-1", "proxy-1", as_json([rows[0], *rows[2:]]), spread=as_json([[2, *spread[1][1:]]])
    )
    assert divided[B].fields() == {
        "id": "id-1",
        "instance": "proxy-1",
        "rows": as_json([rows[1]]),
        "metered": as_json(metered),
        "spread": as_json([[0, *spread[0][1:]]]),
    }
    assert (divided["proj_c"].rows, divided["proj_c"].broken) == ("[]", as_json(broken))


def test_denials_are_divided_by_project() -> None:
    """One of no project has no intake."""
    rows = [[f"dec_{project}", 1, "limited", project, "tok_1", "", "", {}] for project in (A, B, "", A)]

    assert denials_by_project(as_json(rows)) == {A: as_json([rows[0], rows[3]]), B: as_json([rows[1]])}


@pytest.fixture
def log() -> UsageLog:
    return UsageLog("proxy-1")


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Redis]:
    """A client of an empty store."""
    with connect(server.url) as plain:
        plain.flushall()
        plain.execute_command("ACL LOG", "RESET")
        yield plain
        plain.execute_command("ACL DELUSER", "limited")


@pytest.fixture
def delivery(log: UsageLog, client: Redis, server: ValkeyServer) -> Iterator[Delivery]:
    """``delivery(A)`` has the account of these projects, of all without any. Called again, it gives other rights."""
    url = server.url.replace("redis://", "redis://limited:a-password@")
    with connect(url, timeout=5.0) as own:
        made = UsageDelivery(own, KEYS, log)

        def give(*projects: str) -> UsageDelivery:
            rules = enforcer(KEYS, projects)
            client.execute_command("ACL SETUSER", "limited", "on", "resetpass", ">a-password", *rules)
            return made

        yield give


def count(log: UsageLog, *projects: str) -> None:
    for project in projects:
        log.of(TokenEntry(parse_token(dumps(token(id=f"tok_{project}", project=project)))), []).passed(MINUTE, 1, [])


def delivered(client: Redis, key: str) -> list[str]:
    """The tokens whose rows are in a stream."""
    return [row[2] for _, fields in client.xrange(key) for row in json.loads(fields.get("rows", "[]"))]


def test_an_account_of_a_project_writes_to_its_intake(
    log: UsageLog, client: Redis, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    """It tries the shared streams once. What it may report nowhere keeps nothing waiting, and is said."""
    limited = delivery(A)
    for _ in range(3):
        count(log, A, B)
        limited.deliver()

    assert delivered(client, KEYS.intake(A)) == ["tok_proj_a"] * 3
    assert log.drain() == []
    assert not client.exists(KEYS.usage)
    assert log.dropped == 3
    assert [line for line in caplog.messages if "may not report usage of proj_b" in line]
    refused = {entry["object"]: entry["count"] for entry in client.acl_log()}
    assert refused == {KEYS.usage: 4, KEYS.intake(B): 3}


def test_an_account_of_all_projects_writes_where_all_do(log: UsageLog, client: Redis, delivery: Delivery) -> None:
    """Also after it was limited. Its batch has the id that it would have in the intake."""
    limited = delivery(A)
    count(log, A)
    limited.deliver()
    delivery()
    for _ in range(2):
        count(log, A, B)
        limited.deliver()

    ids = [fields["id"] for _, fields in client.xrange(KEYS.usage)]
    assert sorted(delivered(client, KEYS.usage)) == ["tok_proj_a"] * 2 + ["tok_proj_b"] * 2
    assert delivered(client, KEYS.intake(A)) == ["tok_proj_a"]
    assert [ids[0], ids[1].endswith(f"/{B}")] == [id_in_intake(ids[1].partition("/")[0], A), True]
    assert "/" not in ids[2]


def test_usage_that_nobody_reads_is_said(
    log: UsageLog, client: Redis, delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a backup of SQL from before the account was made."""
    limited = delivery(A)
    for read in (frozenset(), frozenset({A})):
        caplog.clear()
        limited._intakes = lambda read=read: read  # type: ignore[misc]
        count(log, A)
        limited.deliver()
        assert ("Nobody reads the usage" in caplog.text) is (A not in read)
