"""
What operators and programs do in a bad hour, while processes are killed: labels, overrides, suspensions, broken glass,
batches, deletions of projects, alerts and webhooks.

What was acknowledged happened once, and so did what was repeated with its key until it was answered. Nothing happened
twice. Each token that comes near its limit has one event, and each message arrives under one id.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.operations.webhooks.conftest import LOOPBACK, Receiver, receiver  # noqa: F401  (fixture)
from tests.controlplane.stack.parts import Api, counted, rows, send
from tests.controlplane.stack.running import Run, checkout, eventually, up
from tests.controlplane.stack.test_kills import KILLED, LIMIT, kill
from tests.scale import scale

# test_kills.py is its small sibling.
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not scale(False, True), reason="kills processes for minutes: make proof"),
]

WRITERS, CALLERS, KILLS, SEED = 5, 4, 20, 20261127
NEAR = [{"name": "daily", "algorithm": "fixed_window", "quota": 10, "calendar": "day"}]
# Six of ten reach the first threshold and not the second.
SENT = 6
RATES = {f"SLUICEGATE_REST_{name}RATE": "off" for name in ("", "CONSUMER_", "FAILURE_")}
ENVIRONMENT = {**RATES, "SLUICEGATE_ALERT_NETWORKS": ",".join(LOOPBACK)}


class Writer:
    """
    Does one operation after the other.

    Attributes:
        once: How often each deed must be in the audit: by action and reason.
        at_most_once: The deeds without a key that were not answered.
    """

    def __init__(self, api: Api, number: int, hook: str) -> None:
        self.api, self.number, self.hook = api, number, hook
        self.once: list[tuple[str, str]] = []
        self.at_most_once: list[tuple[str, str]] = []
        self.messages: list[str] = []
        self.gone: list[str] = []

    def work(self, done: threading.Event) -> None:
        deeds = [self.label, self.override, self.suspend, self.value, self.batch, self.project, self.message]
        if self.number == 0:  # there is one glass
            deeds.append(self.glass)
        turn = 0
        while not done.is_set():
            turn += 1
            deeds[turn % len(deeds)](f"w{self.number}-{turn}")

    def do(self, method: str, path: str, body: Any, name: str, *actions: str, key: str = "") -> Any:
        """Repeat a call with its key until it is answered, and expect these actions in the audit with this reason."""
        headers = {"Idempotency-Key": f'"{key or name}-{method}-{path[:60]}"', "Sluicegate-Reason": name}
        status, found = self.api.until_answered(method, path, body, time.monotonic() + 150, **headers)
        assert 200 <= status < 300, (method, path, status, found)
        self.once += [(action, name) for action in actions]
        return found

    def token(self, name: str) -> str:
        return str(self.do("POST", "projects/kills/tokens", {"name": name}, name, "token.create")["id"])

    def label(self, name: str) -> None:
        """One change with a key, and one without."""
        token = self.token(name)
        self.do("PATCH", f"tokens/{token}", {"labels": {"turn": name}}, name, "token.update")
        again = f"{name}-again"
        try:
            headers = {"Sluicegate-Reason": again}
            status, _, _ = self.api.call("PATCH", f"tokens/{token}", {"labels": {"turn": again}}, **headers)
        except (OSError, http.client.HTTPException, ValueError):
            status = 500
        (self.once if status == 200 else self.at_most_once).append(("token.update", again))

    def override(self, name: str) -> None:
        end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        body = {"limit": "counted/daily", "token": self.token(name), "quota": 5, "reason": name, "ends_at": end}
        made = self.do("POST", "overrides", body, name, "override.create")
        self.do("DELETE", f"overrides/{made['id']}", None, name, "override.delete")

    def suspend(self, name: str) -> None:
        token = self.token(name)
        end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        self.do("POST", f"tokens/{token}/suspend", {"ends_at": end}, name, "token.suspend")
        self.do("POST", f"tokens/{token}/resume", {}, name, "token.resume")

    def value(self, name: str) -> None:
        body = {"project": "kills", "name": "session", "value": name, "reason": name}
        made = self.do("POST", "suspensions", body, name, "suspension.create")
        self.do("DELETE", f"suspensions/{made['id']}", None, name, "suspension.delete")

    def glass(self, name: str) -> None:
        self.do("PUT", "break-glass", {"seconds": 600, "reason": name}, name, "breakglass.break")
        self.do("DELETE", "break-glass", None, name, "breakglass.mend")

    def batch(self, name: str) -> None:
        items = [{"project": "kills", "name": f"{name}-{number}"} for number in range(5)]
        self.do("POST", "tokens/batch", {"items": items}, name, *["token.create"] * 5)

    def project(self, name: str) -> None:
        self.do("POST", "projects", {"slug": name, "name": name, "policy": "counted"}, name, "project.create")
        self.do("POST", f"projects/{name}/tokens", {"name": name}, name, "token.create")
        self.do("DELETE", f"projects/{name}", None, name, "project.delete", "token.delete")
        self.gone.append(name)

    def message(self, name: str) -> None:
        self.messages.append(self.do("POST", f"webhooks/{self.hook}/test", {}, name, "destination.test")["id"])


class Caller:
    """Makes tokens with small limits, and sends the requests of each in one go."""

    def __init__(self, api: Api, proxies: list[str], number: int) -> None:
        self.api, self.proxies, self.number = api, proxies, number
        self.near: list[str] = []
        self.sent = 0

    def work(self, done: threading.Event) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            name = f"near-{self.number}-{turn}"
            key, body = {"Idempotency-Key": f'"{name}"'}, {"name": name, "policy": "near"}
            path, stop = "projects/near/tokens", time.monotonic() + 150
            # The secret is in the first answer only.
            status, made = self.api.until_answered("POST", path, body, stop, **key)
            if status == 201 and made.get("secret"):
                self.send(made["id"], made["secret"])
            time.sleep(0.2)

    def send(self, token: str, secret: str) -> None:
        """Send the requests of a token through all proxies. A proxy that has not met it answers 503 in an outage."""
        for number in range(SENT):
            proxy = self.proxies[number % len(self.proxies)]
            assert eventually(lambda proxy=proxy: self.passes(proxy, secret))
        self.near.append(token)

    def passes(self, proxy: str, secret: str) -> bool:
        """Return whether a proxy admits a request. The token may wait for a store that was killed to be published."""
        ((status, _),) = send(proxy, secret).items()
        self.sent += status == 200
        assert status in (200, 401, 503), status
        return status == 200


def prepared(run: Run, url: str) -> tuple[Api, str]:
    """Return a program, and the id of a webhook that is told of each token near its limit."""
    made = run.manage("create_management_key", "--name", "writer", "--scopes", "*", "--all-projects")
    assert made.returncode == 0, made.stderr
    api = Api(run.web_url, next(word for word in made.stdout.split() if word.startswith("sg_mgmt_")))
    hook = create(api, "webhooks", {"name": "hook", "project": None, "url": url})
    for slug, limits in (("counted", [LIMIT]), ("near", NEAR)):
        create(api, "policies", {"slug": slug, "name": slug, "limits": limits})
    create(api, "projects", {"slug": "kills", "name": "Kills", "policy": "counted"})
    create(api, "projects", {"slug": "near", "name": "Near", "policy": None})
    rule = {"name": "near", "kind": "usage", "project": "near", "webhooks": [], "recovery": False}
    create(api, "alert-rules", {**rule, "project": None, "webhooks": [hook["id"]]})
    return api, hook["id"]


def create(api: Api, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, _, made = api.call("POST", path, body)
    assert status == 201, (path, made.get("errors", made))
    return dict(made)


def test_kills_double_no_operation_and_lose_none(tmp_path: Path, database: str, receiver: Receiver) -> None:  # noqa: F811
    """Web, worker, beat and the store are killed in turns that only the seed knows."""
    chance, done, folder = random.Random(SEED), threading.Event(), checkout(tmp_path)
    environment = {"DATABASE_URL": database, **ENVIRONMENT}
    with up(folder, environment) as run:
        api, hook = prepared(run, receiver.url)
        callers = [Caller(api, run.proxies(), number) for number in range(CALLERS)]
        assert eventually(lambda: all(listens(proxy) for proxy in run.proxies()))
        writers = [Writer(api, number, hook) for number in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS + CALLERS) as threads:
            working = [threads.submit(one.work, done) for one in (*callers, *writers)]
            try:
                for number in range(KILLS):
                    time.sleep(chance.uniform(0.5, 3.0))
                    kill(run, KILLED[number] if number < len(KILLED) else chance.choice(KILLED))
                # A host that is busy takes longer to do so much.
                assert eventually(lambda: len({deed for writer in writers for deed in writer.once}) > KILLS)
                assert eventually(lambda: any(writer.gone for writer in writers) and len(near(callers)) > 2)
                assert eventually(lambda: any(writer.messages for writer in writers))
            finally:
                done.set()
            for work in working:
                work.result(300)
        assert eventually(lambda: one(database, "publishing_outboxentry WHERE revision_id IS NULL") == 0)
        assert eventually(lambda: counted(database) >= sent(callers))
        assert eventually(lambda: one(database, "alerts_alertevent") >= len(near(callers)))
        assert eventually(lambda: one(database, "webhooks_delivery WHERE state <> 'delivered'") == 0)
        time.sleep(35)  # one more look at everything that rules watch
        verified = run.manage("verify_audit")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert counted(database) == sent(callers)
    hold_deeds(database, writers)
    hold_events(database, callers, receiver)
    hold_messages(database, writers, receiver)


def listens(proxy: str) -> bool:
    try:
        return bool(send(proxy, "sg_live_none"))
    except OSError:
        return False


def one(database: str, what: str) -> int:
    return int(rows(database, f"SELECT count(*) FROM {what}")[0][0])


def hold_deeds(database: str, writers: list[Writer]) -> None:
    """Each deed is as often in the audit as it was done, and what was undone has left nothing."""
    found = Counter[tuple[str, str]](rows(database, "SELECT action, reason FROM policies_auditentry"))
    done = Counter(deed for writer in writers for deed in writer.once)
    doubtful = {deed for writer in writers for deed in writer.at_most_once}

    assert len(done) > KILLS
    assert {deed: (found[deed], count) for deed, count in done.items() if found[deed] != count} == {}
    assert {deed: found[deed] for deed in doubtful if found[deed] > 1} == {}
    assert {deed for deed in found if deed[1].startswith("w")} - set(done) - doubtful == set()
    names = Counter(name for (name,) in rows(database, "SELECT name FROM projects_token"))
    assert [name for name, count in names.items() if count > 1] == []
    gone = {name for writer in writers for name in writer.gone}
    assert gone
    assert gone & {slug for (slug,) in rows(database, "SELECT slug FROM projects_project")} == set()
    for table in ("policies_override", "emergency_suspension"):
        assert one(database, table) == 0, table


def sent(callers: list[Caller]) -> int:
    return sum(caller.sent for caller in callers)


def near(callers: list[Caller]) -> list[str]:
    return [token for caller in callers for token in caller.near]


def hold_events(database: str, callers: list[Caller], got: Receiver) -> None:
    """Each token near its limit has one event, and each event arrived."""
    events = rows(database, "SELECT id, subject, level, state FROM alerts_alertevent")
    arrived = Counter(request.headers["webhook-id"] for request in got.requests)

    assert len(near(callers)) > 2
    subjects = Counter(token for _, subject, *_ in events for token in near(callers) if token in subject)
    assert subjects == dict.fromkeys(near(callers), 1)
    assert len(events) == len(near(callers))
    assert {(level, state) for *_, level, state in events} == {(50, "raised")}
    assert {event for event, *_ in events} <= set(arrived)


def hold_messages(database: str, writers: list[Writer], got: Receiver) -> None:
    """Each message has one id and one body, however often it came."""
    bodies: dict[str, set[bytes]] = {}
    for request in got.requests:
        bodies.setdefault(request.headers["webhook-id"], set()).add(request.body)
    wanted = [message for writer in writers for message in writer.messages]
    found = dict(rows(database, "SELECT id, message_id FROM webhooks_delivery"))

    assert len(wanted) == len(set(wanted)) > 0
    assert {name for name, sent in bodies.items() if len(sent) != 1} == set()
    assert {found[message] for message in wanted} <= set(bodies)
    assert set(bodies) == set(found.values())
    assert all(json.loads(body) for sent in bodies.values() for body in sent)
