"""
The platform under writers and traffic, while its processes are killed.

Every acknowledged change is there once, every change with an idempotency key that was repeated until it was answered is
there once, and the usage in SQL is what clients have seen, request by request.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.controlplane.stack.parts import Api, counted, rows
from tests.controlplane.stack.running import Run, checkout, eventually, up
from tests.scale import scale

pytestmark = pytest.mark.proof

WRITERS, KILLS, SEED = scale(2, 20), scale(4, 100), 20261126
KILLED = ("web", "worker", "beat", "valkey")
SCOPES = "projects:read,projects:write,policies:read,policies:write,tokens:read,tokens:write"
LIMIT = {"name": "daily", "algorithm": "fixed_window", "quota": 1_000_000_000, "window_seconds": 86_400}


class Writer:
    """Creates tokens, with and without an idempotency key, and counts up a field of one policy with If-Match."""

    def __init__(self, api: Api, number: int) -> None:
        self.api, self.number = api, number
        self.with_key: list[str] = []
        self.acknowledged: list[str] = []
        self.in_doubt: list[str] = []
        self.increments = 0
        self.increments_in_doubt = 0

    def work(self, done: threading.Event) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            name = f"w{self.number}-{turn}"
            [self.create_once, self.create, self.increment][turn % 3](name)

    def create_once(self, name: str) -> None:
        key = {"Idempotency-Key": f'"{name}"'}
        status, _ = self.api.until_answered(
            "POST", "projects/kills/tokens", {"name": name}, time.monotonic() + 120, **key
        )
        assert status == 201, status
        self.with_key.append(name)

    def create(self, name: str) -> None:
        try:
            status, _, _ = self.api.call("POST", "projects/kills/tokens", {"name": name})
        except (OSError, http.client.HTTPException, ValueError):
            status = 500
        (self.acknowledged if status == 201 else self.in_doubt).append(name)

    def increment(self, _: str) -> None:
        """Add one to a number that all writers share. A lost update would be a number that is too small."""
        try:
            status, headers, policy = self.api.call("GET", "policies/counted")
            if status != 200:
                return
            body = {"description": str(int(policy["description"]) + 1)}
            match = {"If-Match": headers["ETag"]}
        except (OSError, http.client.HTTPException, ValueError):
            return
        try:
            status, _, _ = self.api.call("PATCH", "policies/counted", body, **match)
        except (OSError, http.client.HTTPException, ValueError):
            status = 500
        self.increments += status == 200
        self.increments_in_doubt += status >= 500


class Client:
    """Sends requests through the proxies and counts what they answer."""

    def __init__(self, proxies: list[str], secret: str) -> None:
        self.addresses = [urlsplit(address).netloc for address in proxies]
        self.secret, self.statuses = secret, Counter[int]()

    def work(self, done: threading.Event) -> None:
        connections = [http.client.HTTPConnection(address, timeout=20) for address in self.addresses]
        while not done.is_set():
            for connection in connections:
                connection.request("GET", "/v1/x", headers={"Authorization": f"Bearer {self.secret}"})
                response = connection.getresponse()
                response.read()
                self.statuses[response.status] += 1
            time.sleep(0.01)
        for connection in connections:
            connection.close()


def kill(run: Run, name: str) -> None:
    """Kill a part of the platform with all its processes, if it runs at the moment."""
    group = run.groups().get(name)
    if group:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def prepared(run: Run) -> tuple[Api, str]:
    """Return a program, and the secret of a token, for a project with one limit that all proxies know."""
    made = run.manage("create_management_key", "--name", "writer", "--scopes", SCOPES, "--all-projects")
    assert made.returncode == 0, made.stderr
    api = Api(run.web_url, next(word for word in made.stdout.split() if word.startswith("sg_mgmt_")))
    policy = {"slug": "counted", "name": "Counted", "description": "0", "limits": [LIMIT]}
    assert api.call("POST", "policies", policy)[0] == 201
    assert api.call("POST", "projects", {"slug": "kills", "name": "Kills", "policy": "counted"})[0] == 201
    status, _, token = api.call("POST", "projects/kills/tokens", {"name": "traffic"})
    assert status == 201
    return api, token["secret"]


def test_kills_lose_and_double_nothing(tmp_path: Path, database: str) -> None:
    """Web, worker, beat and the store are killed in turns that only the seed knows."""
    chance, done, folder = random.Random(SEED), threading.Event(), checkout(tmp_path)
    with ExitStack() as runs:
        run = runs.enter_context(up(folder, {"DATABASE_URL": database}))
        api, secret = prepared(run)
        client = Client(run.proxies(), secret)
        assert eventually(lambda: answers(client))
        writers = [Writer(api, number) for number in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS + 1) as threads:
            working = [threads.submit(one.work, done) for one in (client, *writers)]
            try:
                for number in range(KILLS):
                    time.sleep(chance.uniform(0.2, 1.5))
                    kill(run, KILLED[number] if number < len(KILLED) else chance.choice(KILLED))
                # A loser of each race counts nothing, and all of them while the web server starts again.
                assert eventually(lambda: any(writer.increments for writer in writers))
                assert eventually(lambda: sum(len(it.with_key) + len(it.acknowledged) for it in writers) > KILLS)
                time.sleep(2)
            finally:
                done.set()
            for work in working:
                work.result(180)
        assert eventually(
            lambda: rows(database, "SELECT count(*) FROM publishing_outboxentry WHERE revision_id IS NULL")[0] == (0,)
        )
        if scale(False, True):  # and what is not counted yet survives an end in order
            runs.close()
            run = runs.enter_context(up(folder, {"DATABASE_URL": database}))
        assert eventually(lambda: counted(database) >= client.statuses.total())
        verified = run.manage("verify_audit")
    hold_tokens(database, writers)
    hold_increments(database, writers)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert set(client.statuses) == {200}
    assert counted(database) == client.statuses.total()


def answers(client: Client) -> bool:
    """Whether each proxy listens and knows the token. These requests are counted as the others."""
    found = []
    for address in client.addresses:
        connection = http.client.HTTPConnection(address, timeout=20)
        with suppress(ConnectionRefusedError):
            connection.request("GET", "/v1/x", headers={"Authorization": f"Bearer {client.secret}"})
            found.append(connection.getresponse().status)
        connection.close()
    client.statuses.update(status for status in found if status == 200)
    return found == [200] * len(client.addresses)


def hold_tokens(database: str, writers: list[Writer]) -> None:
    """Each name that was acknowledged is there once, and each that was not at most once."""
    found = Counter(name for (name,) in rows(database, "SELECT name FROM projects_token"))
    audited = Counter(
        name
        for (name,) in rows(database, "SELECT after->>'name' FROM policies_auditentry WHERE action = 'token.create'")
    )
    once = [name for writer in writers for name in (*writer.with_key, *writer.acknowledged)]
    doubtful = [name for writer in writers for name in writer.in_doubt]

    assert len(once) > KILLS
    assert {name: found[name] for name in once if found[name] != 1} == {}
    assert {name: found[name] for name in doubtful if found[name] > 1} == {}
    assert found == audited
    assert set(found) <= {*once, *doubtful, "traffic"}


def hold_increments(database: str, writers: list[Writer]) -> None:
    """The shared number has each acknowledged increment, and of the others at most each one."""
    ((number,),) = rows(database, "SELECT description FROM policies_policy WHERE slug = 'counted'")
    certain = sum(writer.increments for writer in writers)

    assert certain > 0
    assert certain <= int(number) <= certain + sum(writer.increments_in_doubt for writer in writers)
