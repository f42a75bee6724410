"""``sluicegate explain`` shows what a decision would find, and charges nothing."""

import io
import json
from datetime import UTC, datetime

import pytest

from enforcement import Anonymous, Limit, Limiter
from enforcement.cli import main
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint
from enforcement.store_calls.acl import enforcer

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


def test_what_a_limit_carries_is_named_beside_its_quota(server, published, explain, capsys):
    """More than the quota may be left. What is used is that of this day."""
    published.policy("budget", Limit(name="rolling", quota=10, calendar="day", rollover=5, unit="requests"))
    token = published.token(policy="budget", project="shop", name="ci")
    today = int(datetime.now(UTC).timestamp()) * 1_000_000
    with Limiter(server.url, timeout=1.0, clock=lambda: today - 86_400_000_000) as limiter:
        limiter.check(token, costs=7)

    _, found = explain(token)
    assert main(["explain", token, "--redis", server.url]) == 0

    (counter,) = [counter for counter in found["limits"] if counter["limit"] == "rolling"]
    assert (counter["used"], counter["remaining"], counter["rollover"]) == (0, 13, 5)
    assert "10 requests, and up to 5 carried  13" in capsys.readouterr().out


def test_looking_charges_nothing(server, published, explain):
    """However often the command is run."""
    token = published.token(policy="api", project="shop")
    charge(server, token, 1)
    for _ in range(5):
        status, reported = explain(token)

    assert (status, reported["verdict"], reported["project"]) == (0, "ok", "shop")
    assert {row["limit"]: row["remaining"] for row in reported["limits"]}["per-hour"] == 2


def test_the_counter_of_a_label_has_its_numbers(server, published, explain, capsys):
    """Used up by another token of the team, it is the verdict."""
    published.policy("teams", Limit(name="team", quota=1, window_seconds=3_600, partition_by=("label.team",)))
    published.project("shop", policy="teams")
    one, two = (published.token(project="shop", labels={"team": "red"}) for _ in range(2))
    charge(server, one, 1)

    status, reported = explain(two)
    assert (status, reported["verdict"], reported["limits"][-1]["labels"]) == (1, "limited", {"label.team": "red"})
    assert main(["explain", two, "--redis", server.url]) == 1
    assert "the project, label.team red" in capsys.readouterr().out


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


def denied(server, token, **options):
    """Return the decision that denies a request."""
    with Limiter(server.url, timeout=1.0, instance="proxy-7.rack-3", **options) as limiter:
        return limiter.check(token)


def test_a_decision_is_explained_by_its_id(server, published, explain, capsys):
    """As a table for people, and as JSON."""
    published.policy("api", Limit(name="never", quota=0, window_seconds=60))
    token = published.token(policy="api", project="shop")
    decision = denied(server, token)
    status, carried = explain(decision.id)
    assert main(["explain", decision.id, "--redis", server.url]) == status == 0

    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name.strip(): value.strip() for name, value in rows.items()} == {
        "time": carried["at"],
        "reason": "cost_exceeds_capacity",
        "limit": "api/never",
        "token": carried["token"],
        "project": "shop",
        "instance": "proxy-7.rack-3",
        "revision": str(published.revision),
        "decided by": "store",
    }
    assert datetime.fromisoformat(carried["at"]).timestamp() * 1_000 == decision.decided_at_us // 1_000


def test_spaces_around_an_id_are_no_part_of_it(server, published, explain):
    """As copying leaves them. An id with a space in front was taken for a token."""
    decision = denied(server, published.token(policy="api", project="shop"))

    assert explain(f" {decision.id}\n") == explain(decision.id)


def test_the_account_of_a_proxy_explains_a_decision(server, world, published, explain):
    """It has to read the key to make ids, too."""
    world.client.execute_command("ACL SETUSER", "proxy", "on", "resetpass", ">pass", *enforcer(Keys()))
    by_proxy = server.url.replace("redis://", "redis://proxy:pass@")
    with Limiter(by_proxy, timeout=1.0) as limiter:
        found = limiter.check(mint("live")).id
    status, carried = explain(found, "--redis", by_proxy)
    world.client.execute_command("ACL DELUSER", "proxy")

    assert (status, carried["reason"], carried["token"], carried["project"]) == (0, "unknown_token", None, None)


def test_a_decision_on_a_request_without_a_token_is_explained(server, published, explain):
    """Its id names the project and the limit, and no token."""
    published.policy("guests", Limit(name="closed", quota=0, window_seconds=60))
    published.project("shop", anonymous_policy="guests")
    status, carried = explain(denied(server, Anonymous("shop")).id)

    assert (status, carried["project"], carried["limit"], carried["token"]) == (0, "shop", "guests/closed", None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda found: found[:-3], "must be a whole id made with this key"),
        (lambda found: found[:20], "must be 'dec_' and 24 to 196 characters"),
        (lambda found: found[:-1] + ("A" if found[-1] != "A" else "B"), "must be a whole id made with this key"),
        (lambda found: found + "!", "must be 'dec_' and 24 to 196 characters"),
    ],
    ids=["cut", "stump", "altered", "added"],
)
def test_an_id_that_is_not_whole_is_refused(server, published, capsys, spoil, message):
    """With a sentence, and a status of its own."""
    found = denied(server, published.token(project="shop", revoked=True)).id

    assert main(["explain", spoil(found), "--redis", server.url]) == 1
    assert message in capsys.readouterr().err


def test_an_id_of_another_fleet_is_refused(server, published, capsys):
    """Its key is another one."""
    found = denied(server, published.token(project="shop", revoked=True), decision_key="the key of another fleet").id

    assert main(["explain", found, "--redis", server.url]) == 1
    assert "made with this key; it was cut, altered or forged" in capsys.readouterr().err


def test_a_key_from_the_environment_needs_no_store(server, published, explain, monkeypatch):
    """For limits in code, where no control plane keeps a key."""
    secret = "a secret of the whole fleet"
    found = denied(server, published.token(project="shop", revoked=True), decision_key=secret).id
    monkeypatch.setenv("SLUICEGATE_DECISION_KEY", secret)
    status, carried = explain(found, "--redis", "redis://127.0.0.1:1")

    assert (status, carried["reason"], carried["instance"]) == (0, "revoked", "proxy-7.rack-3")


def test_without_a_key_nothing_is_explained(server, world, capsys):
    """The message says how a key comes to be."""
    world.client.flushall()

    assert main(["explain", "dec_" + "A" * 80, "--redis", server.url]) == 2
    assert "set SLUICEGATE_DECISION_KEY" in capsys.readouterr().err
