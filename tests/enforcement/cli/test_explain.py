"""``sluicegate explain`` shows what a decision would find, and charges nothing."""

import io
import json
from datetime import UTC, datetime

import pytest

from enforcement import Limit, Limiter
from enforcement.cli import main
from enforcement.control.acl import enforcer
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint

PER_HOUR = Limit(name="per-hour", quota=3, window_seconds=3_600)
A_DAY = Limit(name="a-day", quota=500, calendar="day", unit="tokens")
PER_IP = Limit(name="per-ip", quota=9, window_seconds=3_600, partition_by=("ip",))
SHADOW = Limit(name="stricter", quota=0, window_seconds=60, mode="shadow")


@pytest.fixture
def published(world):
    """A store with a project, a global policy, and a policy for tokens."""
    published = world.published
    published.policy("all", A_DAY, SHADOW)
    published.globally("all")
    published.policy("api", PER_HOUR, PER_IP)
    published.project("shop")
    return published


@pytest.fixture
def explain(server, capsys):
    """Run the command; return its exit status and what it printed as JSON."""

    def run(token, *options):
        status = main(["explain", token, "--redis", server.url, "--json", *options])
        return status, json.loads(capsys.readouterr().out)

    return run


def charge(server, token, times, **attributes):
    limiter = Limiter(server.url, timeout=1.0)
    for _ in range(times):
        limiter.check(token, attributes=attributes)
    limiter.close()


def test_each_limit_of_a_token_is_shown_with_what_is_left(server, published, capsys):
    """In a table for people; an override is named, and so is a limit that only looks."""
    token = published.token(policy="api", project="shop", name="ci")
    published.override("api/per-hour", quota=5, token=token)
    charge(server, token, 2, ip="10.0.0.1")

    assert main(["explain", token, "--redis", server.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("  ")[0] for line in lines[3:]]
    assert lines[0].startswith("ok: token tok_")
    assert lines[0].endswith(f"(ci) of project shop, revision {published.revision}")
    assert lines[2].split() == ["limit", "applies", "to", "algorithm", "quota", "left", "resets", "in"]
    assert rows == ["all/a-day", "all/stricter", "api/per-hour", "api/per-ip"]
    assert "the global (shadow)" in lines[4]
    assert "5 requests by override  3" in lines[5]
    assert "9 requests              by ip: 1 value" in lines[6]


def test_looking_charges_nothing(server, published, explain):
    """However often the command is run."""
    token = published.token(policy="api", project="shop")
    charge(server, token, 1)
    for _ in range(5):
        status, reported = explain(token)

    assert (status, reported["verdict"], reported["project"]) == (0, "ok", "shop")
    assert {row["limit"]: row["remaining"] for row in reported["limits"]}["per-hour"] == 2


def test_a_limit_that_is_used_up_is_the_verdict(server, published, explain):
    """The exit status is for programs."""
    token = published.token(policy="api", project="shop")
    charge(server, token, 4)
    status, reported = explain(token)

    assert (status, reported["verdict"]) == (1, "limited")


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda p: p.token(project="shop", revoked=True), "revoked"),
        (lambda p: p.token(project="shop", expires_at=datetime.now(UTC)), "expired"),
        (lambda p: p.project("shop", active=False) or p.token(project="shop"), "inactive_project"),
        (lambda p: mint("live"), "unknown_token"),
        (lambda p: "nonsense", "unknown_token"),
    ],
)
def test_a_token_that_may_not_pass_has_its_reason(published, explain, make, verdict):
    """The one that a decision gives."""
    status, reported = explain(make(published))

    assert (status, reported["verdict"], reported["limits"]) == (1, verdict, [])


def test_the_account_of_a_proxy_can_run_it(server, world, published, explain):
    """It reads what a decision reads, and nothing else."""
    world.client.execute_command("ACL SETUSER", "proxy", "on", "resetpass", ">pass", *enforcer(Keys()))
    token = published.token(policy="api", project="shop")
    status, reported = explain(token, "--redis", server.url.replace("redis://", "redis://proxy:pass@"))
    world.client.execute_command("ACL DELUSER", "proxy")

    assert (status, reported["verdict"], len(reported["limits"])) == (0, "ok", 4)


def test_a_token_can_be_given_where_nobody_sees_it(server, published, explain, monkeypatch):
    """On standard input, and not in a list of processes."""
    monkeypatch.setattr("sys.stdin", io.StringIO(published.token(project="shop") + "\n"))

    assert explain("-")[1]["verdict"] == "ok"


def test_what_cannot_be_read_ends_in_two(server, world, published, capsys):
    """A policy that is missing is no limit that is missing; a store without documents knows no token."""
    token = published.token(policy="api", project="shop")
    published.publish({"policy:pol_api": None})
    outcomes = [
        main(["explain", token, "--redis", server.url]),
        main(["explain", token, "--redis", server.url, "--prefix", "other:"]),
        main(["explain", token, "--redis", "redis://:secret@127.0.0.1:1/0"]),
        main(["explain", token, "--redis", "http://127.0.0.1/0"]),
    ]
    errors = capsys.readouterr().err.splitlines()

    assert outcomes == [2, 2, 2, 2]
    assert errors[0] == "sluicegate explain: the document of policy pol_api is missing or cannot be read"
    assert errors[1] == (
        "sluicegate explain: no documents below the prefix 'other:'; 'manage.py publish --all' writes them there."
    )
    assert errors[2].startswith("sluicegate explain: redis://:***@127.0.0.1:1/0: ConnectionError")
    assert token not in "".join(errors)
