"""The command that makes the store's accounts, on a store with a file of accounts; and the control plane under them."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from controlplane import checks
from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.operations.explain import live_counters
from controlplane.releases.publishing import rebuild
from controlplane.releases.publishing import tasks as publishing_tasks
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.releases.publishing.publisher import Postponed, publish_all
from controlplane.releases.publishing.reconcile import reconcile
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage import checkpoints, tasks
from controlplane.traffic.usage.drain import DrainResult, drain
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from enforcement import Limiter
from enforcement.cli import main
from enforcement.embedded import ValkeyServer
from enforcement.model.keys import Keys
from enforcement.store_calls import acl
from tests.controlplane.stack.running import eventually
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "a-password-of-24-letters"
NAMES = ("publisher", "enforcer", "worker")
KEYS = Keys()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ValkeyServer]:
    """A store whose accounts last, with one for a person."""
    folder = tmp_path_factory.mktemp("accounts")
    file = folder / "users.acl"
    file.write_text("user default on nopass ~* &* +@all\nuser admin on nopass ~* &* +@all\n")
    with ValkeyServer(folder / "data", config={"aclfile": f'"{file}"'}) as running:
        yield running


@pytest.fixture
def admin(server, settings) -> Iterator[redis.Redis]:
    """The administrator's client of an empty store; the settings have the same address, and tests may change it."""
    settings.REDIS_URL = url_of(server, "admin", "any")
    with redis.Redis.from_url(settings.REDIS_URL, decode_responses=True, protocol=2) as client:
        client.flushall()
        client.function_flush()
        client.execute_command("ACL SETUSER", "default", "on")
        client.execute_command("ACL DELUSER", *NAMES, *(n for n in client.acl_users() if n.startswith("enforcer-")))
        client.acl_log_reset()
        yield client


@pytest.fixture
def account(admin, server, settings, monkeypatch) -> Callable[[str], str]:
    """Install the accounts; ``account("worker")`` lets the control plane use that one, and returns its address."""
    for name in NAMES:
        monkeypatch.setenv(f"SLUICEGATE_{name.upper()}_PASSWORD", PASSWORD)
    store_acl("--apply")

    def use(name: str) -> str:
        settings.REDIS_URL = url_of(server, name, PASSWORD)
        return settings.REDIS_URL

    return use


def url_of(server: ValkeyServer, name: str, password: str) -> str:
    return f"redis://{name}:{password}@127.0.0.1:{server.port}/0"


def store_acl(*options: str) -> tuple[str, str]:
    """Run the command; return what a file would take, and what only the person sees."""
    output, told = StringIO(), StringIO()
    call_command("store_acl", *options, stdout=output, stderr=told)
    return output.getvalue(), told.getvalue()


def refused(admin: redis.Redis) -> list[str]:
    return [f"{entry['username']}: {entry['object']}" for entry in admin.acl_log()]


def can_connect(url: str) -> bool:
    with redis.Redis.from_url(url, protocol=2) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return False


# The command.


def test_the_rules_are_printed_and_nothing_is_changed(admin):
    """One line an account, for a file; it holds hashes, and the passwords stand apart."""
    rules, told = store_acl()

    assert [line.split()[:3] for line in rules.splitlines()] == [["user", name, "on"] for name in NAMES]
    assert len(re.findall(r"^New password, shown only once: SLUICEGATE_REDIS_URL=redis://\w+:\S{43}@", told, re.M)) == 3
    assert not any(password in rules for password in re.findall(r":(\S{43})@", told))
    assert sorted(admin.acl_users()) == ["admin", "default"]


def test_the_printed_lines_are_a_file_of_accounts(tmp_path):
    """A server starts with them, and the printed password opens the account."""
    rules, told = store_acl("--default-off")
    file = tmp_path / "users.acl"
    file.write_text(rules)
    password = re.search(r"redis://enforcer:(\S+)@", told)[1]

    with ValkeyServer(tmp_path / "data", config={"aclfile": f'"{file}"'}) as server:
        assert can_connect(url_of(server, "enforcer", password))
        assert not can_connect(server.url)
    assert "None of these accounts can manage the store" in told


def test_apply_installs_saves_and_says_so(admin, server):
    """The accounts are there, and are still there after a restart."""
    done, told = store_acl("--apply")
    password = re.search(r"redis://enforcer:(\S+)@", told)[1]

    server.restart()

    assert done.splitlines() == [
        "Account publisher: created.",
        "Account enforcer: created.",
        "Account worker: created.",
        "Saved to the store's ACL file.",
    ]
    assert can_connect(url_of(server, "enforcer", password))


def test_applied_again_passwords_stay_and_rights_are_replaced(admin, server):
    """It may run at every deployment: proxies stay connected, and what somebody added by hand is gone."""
    password = re.search(r"redis://enforcer:(\S+)@", store_acl("--apply")[1])[1]
    admin.execute_command("ACL SETUSER", "enforcer", "+@all", "~*", "(+get ~secret)")

    done, told = store_acl("--apply")

    assert "Account enforcer: rules replaced, password kept." in done
    assert told == ""
    assert can_connect(url_of(server, "enforcer", password))
    assert "has no permissions" in admin.execute_command("ACL DRYRUN", "enforcer", "flushall")
    assert "has no permissions" in admin.execute_command("ACL DRYRUN", "enforcer", "get", "secret")


@pytest.mark.parametrize("before", ["nopass", "resetpass"])
def test_an_account_without_a_password_gets_one(admin, server, before):
    """Somebody opened it to everybody, or closed it: neither is how it should be."""
    admin.execute_command("ACL SETUSER", "enforcer", "on", before)

    done, told = store_acl("--apply")
    password = re.search(r"redis://enforcer:(\S+)@", told)[1]

    assert "Account enforcer: rules replaced, password set." in done
    assert can_connect(url_of(server, "enforcer", password))
    assert not can_connect(url_of(server, "enforcer", "any"))


def test_a_password_from_the_environment_replaces_the_old_one(admin, server, monkeypatch):
    """It is not shown, for whoever set it knows it."""
    old = re.search(r"redis://enforcer:(\S+)@", store_acl("--apply")[1])[1]
    monkeypatch.setenv("SLUICEGATE_ENFORCER_PASSWORD", PASSWORD)

    done, told = store_acl("--apply")

    assert "Account enforcer: rules replaced, password set." in done
    assert PASSWORD not in done + told
    assert can_connect(url_of(server, "enforcer", PASSWORD))
    assert not can_connect(url_of(server, "enforcer", old))


def test_a_short_password_is_refused(admin, monkeypatch):
    """The store's hashes are quick to try."""
    monkeypatch.setenv("SLUICEGATE_WORKER_PASSWORD", "fifteen-letters")

    with pytest.raises(CommandError, match="SLUICEGATE_WORKER_PASSWORD: must have at least 16 characters"):
        store_acl("--apply")

    assert sorted(admin.acl_users()) == ["admin", "default"]


def test_default_can_be_closed(admin, server):
    """Then nobody comes in without a name."""
    assert "Account default: off." in store_acl("--apply", "--default-off")[0]

    assert not can_connect(server.url)


def test_default_is_not_closed_through_itself(admin, server, settings):
    """Nobody could open it again."""
    settings.REDIS_URL = server.url

    with pytest.raises(CommandError, match="Nothing was changed"):
        store_acl("--apply", "--default-off")

    assert can_connect(server.url)
    assert sorted(admin.acl_users()) == ["admin", "default"]


def test_an_account_that_may_not_is_told_so(account):
    """The publisher cannot give itself more."""
    account("publisher")

    with pytest.raises(CommandError, match="may not manage accounts"):
        store_acl("--apply")


def test_a_store_without_a_file_of_accounts_is_told_of(store):
    """What is installed there is lost at the next restart, and the operator must know."""
    done, _ = store_acl("--apply")

    assert done.splitlines()[-1] == "The store has no ACL file (aclfile), so it loses the accounts when it restarts."
    with redis.Redis.from_url(store.url) as client:
        client.execute_command("ACL DELUSER", *NAMES)


def test_a_store_that_is_away_is_an_error(settings):
    """The address of the tests' settings: nothing listens there."""
    with pytest.raises(CommandError, match="The store did not accept the accounts"):
        store_acl("--apply")


def test_a_project_gets_an_enforcer_of_its_own(admin):
    """For proxies that are not trusted with the counters of others."""
    own, other = ProjectFactory(slug="shop"), ProjectFactory()

    done, _ = store_acl("--apply", "--project", "shop")

    assert "Account enforcer-shop: created." in done
    assert admin.execute_command("ACL DRYRUN", "enforcer-shop", "get", f"sg:{{{own.pk}}}:f1") == "OK"
    assert "has no permissions" in admin.execute_command("ACL DRYRUN", "enforcer-shop", "get", f"sg:{{{other.pk}}}:f1")


def test_usage_under_the_account_of_a_project_is_counted(account, server, admin, monkeypatch):
    """The whole way, with no right that is missing. The command opens the intake before the account exists, once."""
    own = TokenFactory(project=ProjectFactory(slug="shop"), policy=LimitFactory(quota=2, window_seconds=3600).policy)
    monkeypatch.setenv("SLUICEGATE_ENFORCER_SHOP_PASSWORD", PASSWORD)
    for _ in range(2):
        store_acl("--apply", "--project", "shop")
    account("worker")
    call_command("publish", "--all", stdout=StringIO())
    with Limiter(url_of(server, "enforcer-shop", PASSWORD), timeout=1.0, instance="proxy-1") as limiter:
        decisions = [limiter.check(own.secret) for _ in range(3)]
        assert eventually(lambda: heartbeats.collect(timezone.now()) == 1)
    drained = drain(timezone.now())

    assert [(d.reason, d.source) for d in decisions] == [("ok", "store"), ("ok", "store"), ("limited", "store")]
    assert (drained.counted >= 1, drained.rejected) == (True, 0)
    assert UsageRow.objects.get(token_id=own.pk, period="day", limit_name="").allowed == 2
    assert DeniedRequest.objects.get().token_id == own.pk
    # It has tried where accounts of all projects write, once.
    assert refused(admin) == ["enforcer-shop: sg:{usage}:stream"]
    assert AuditEntry.objects.get(object_type="project").after["has_intake"] is True


def test_what_a_project_spoils_is_repaired_under_worker(account, admin):
    """Each with the rights that the task has: a type, an id that nothing can follow, and a key of one project."""
    project = ProjectFactory(slug="shop")
    store_acl("--apply", "--project", "shop")
    intake, last = KEYS.intake(project.pk), f"{2**64 - 1}-{2**64 - 1}"
    admin.delete("sg:{fleet}:instances", "sg:{usage}:denials")
    admin.set("sg:{fleet}:instances", "x")
    admin.set("sg:{usage}:denials", "x")
    admin.xadd(intake, {"a": "b"}, id=last)
    admin.xadd("sg:{usage}:stream", {"a": "b"}, id=last)
    account("worker")
    tasks.drain()

    repaired = publishing_tasks.reconcile()

    spoilt = {"sg:{fleet}:instances", "sg:{usage}:denials", intake, "sg:{usage}:stream"}
    assert {line.partition(" ")[0] for line in repaired} >= spoilt
    assert not admin.exists(*spoilt)
    assert publishing_tasks.reconcile() == []
    assert refused(admin) == []


def test_a_project_may_be_kept_from_global_counters(admin):
    """Only where it is named: all others need them."""
    own = ProjectFactory(slug="shop")
    with pytest.raises(CommandError, match="--no-global: must be given with --project"):
        store_acl("--apply", "--no-global")

    store_acl("--apply", "--project", "shop", "--no-global")

    assert admin.execute_command("ACL DRYRUN", "enforcer-shop", "get", f"sg:{{{own.pk}}}:f1") == "OK"
    assert "has no permissions" in admin.execute_command("ACL DRYRUN", "enforcer-shop", "get", "sg:{global}:f1")


def test_a_project_that_does_not_exist_is_refused(admin):
    """A slip of the pen must not make an account."""
    with pytest.raises(CommandError, match="There is no project shop"):
        store_acl("--apply", "--project", "shop")


# The control plane under its accounts.


def test_the_control_plane_publishes_under_publisher(account, admin, actor):
    """From an empty store without functions to a live change, a repair, a look at counters and their reset."""
    account("publisher")
    token = TokenFactory(policy=LimitFactory(quota=7).policy)
    with change(actor=actor) as tx:
        tx.created(token)
    admin.hset("sg:{doc}:documents", f"policy:{token.policy_id}", "{}")
    repaired = reconcile(full=True)
    call_command("publish", "--all", stdout=StringIO())
    subject = live_counters.HolderDocuments.of(token, timezone.now())

    assert tx.revision == 1
    assert repaired == [f"the document policy:{token.policy_id} differed"]
    assert [counter.remaining for counter in subject.counters(live_counters.client())] == [7]
    assert subject.reset(live_counters.client(), None).count == 0
    assert heartbeats.live_instances() == []
    assert checks.store_keeps_documents() == []
    assert refused(admin) == []


def test_a_slow_rebuild_keeps_its_mark_and_its_lock_under_publisher(account, admin, monkeypatch):
    """For longer than either lives by itself, no right may be missing for what prolongs them."""
    account("publisher")
    TokenFactory(policy=LimitFactory().policy)
    read, prolonged = rebuild.compile.all_documents, (("sg:{doc}:rebuild", 9_000), ("sg:{lock}:publish", 4_000))
    monkeypatch.setattr(rebuild, "PROLONGED_SECONDS", 0.01)

    def slow():
        for key, left in prolonged:
            admin.pexpire(key, left)
            assert eventually(lambda key=key, left=left: admin.pttl(key) > left)
        return read()

    monkeypatch.setattr(rebuild.compile, "all_documents", slow)

    assert publish_all() == 1
    assert refused(admin) == []


def test_what_publisher_publishes_an_enforcer_obeys(account, server, admin, actor):
    """The whole way, each under its own account."""
    account("publisher")
    token = TokenFactory(policy=LimitFactory(quota=2, window_seconds=3600).policy)
    with change(actor=actor) as tx:
        tx.created(token)

    with Limiter(url_of(server, "enforcer", PASSWORD), timeout=1.0) as limiter:
        decisions = [limiter.check(token.secret) for _ in range(3)]

    assert [(d.reason, d.source) for d in decisions] == [("ok", "store"), ("ok", "store"), ("limited", "store")]
    assert refused(admin) == []


def test_durable_quotas_are_kept_and_given_back_under_worker(account, server, admin):
    """A web process with the rights of 0.2 may not write counters: it leaves a store that lost some to the worker."""
    token = TokenFactory(policy=LimitFactory(quota=7, window_seconds=None, calendar="month").policy)
    account("worker")
    call_command("publish", "--all", stdout=StringIO())
    with Limiter(url_of(server, "enforcer", PASSWORD), timeout=1.0) as limiter:
        limiter.check(token.secret)
    kept = checkpoints.checkpoint(timezone.now()).kept
    admin.flushall()
    account("publisher")
    earlier = [rule for rule in acl.publisher(Keys()) if "+zremrangebyscore" not in rule]
    admin.execute_command("ACL SETUSER", "publisher", *earlier)
    with pytest.raises(Postponed, match="only the worker"):
        publish_all()
    admin.acl_log_reset()
    account("worker")
    reconcile()

    assert kept == 1
    assert [counter.remaining for counter in live_counters.counters_of(token)] == [6]
    assert refused(admin) == []


def test_a_web_process_gives_durable_quotas_back(account, server, admin):
    """It may correct counters, so it does not leave a store that lost some to the worker."""
    token = TokenFactory(policy=LimitFactory(quota=7, window_seconds=None, calendar="month").policy)
    account("worker")
    call_command("publish", "--all", stdout=StringIO())
    with Limiter(url_of(server, "enforcer", PASSWORD), timeout=1.0) as limiter:
        limiter.check(token.secret)
    checkpoints.checkpoint(timezone.now())
    admin.flushall()
    admin.acl_log_reset()
    account("publisher")
    publish_all()

    assert [counter.remaining for counter in live_counters.counters_of(token)] == [6]
    assert refused(admin) == []


def test_usage_is_drained_and_heartbeats_are_collected_under_worker(account, server, admin):
    """What an enforcer left is in SQL and out of the stream; what cannot be counted is set aside."""
    token = TokenFactory(policy=PolicyFactory())
    account("worker")
    call_command("publish", "--all", stdout=StringIO())
    with Limiter(url_of(server, "enforcer", PASSWORD), timeout=1.0, instance="proxy-1") as limiter:
        limiter.check(token.secret)
        assert eventually(lambda: heartbeats.collect(timezone.now()) == 1)
    admin.xadd("sg:{usage}:stream", {"id": "broken"})

    drained = drain(timezone.now())

    assert (drained.counted >= 1, drained.rejected) == (True, 1)
    assert UsageRow.objects.filter(token_id=token.pk, period="day", allowed=1).exists()
    assert (admin.xlen("sg:{usage}:stream"), admin.xlen("sg:{usage}:stream:rejected")) == (0, 1)
    assert drain(timezone.now()) == DrainResult()
    assert tasks.drain() == 0
    assert refused(admin) == []


def test_web_says_how_much_usage_waits_under_publisher(account, admin, client):
    """In all streams, which another account may also empty."""
    account("publisher")
    for key in (KEYS.usage, KEYS.usage_shard(0)):
        admin.xadd(key, {"id": "proxy-1-1"})

    assert "\nsluicegate_usage_waiting 2.0\n" in client.get("/metrics").content.decode()
    assert refused(admin) == []


def test_a_denial_is_sampled_and_its_id_is_explained_with_the_rights_of_each(account, server, admin, capsys):
    """By the key that the control plane has published, from the enforcer over the worker to the admin's rows."""
    token = TokenFactory(policy=PolicyFactory(), revoked=True)
    account("worker")
    call_command("publish", "--all", stdout=StringIO())
    by_enforcer = url_of(server, "enforcer", PASSWORD)
    with Limiter(by_enforcer, timeout=1.0, instance="proxy-1") as limiter:
        limiter.start()
        decision = limiter.check(token.secret)
    drain(timezone.now())

    row = DeniedRequest.objects.get()
    assert (row.decision, row.reason, row.token_id, row.instance) == (decision.id, "revoked", token.pk, "proxy-1")
    assert main(["explain", row.decision, "--redis", by_enforcer]) == 0
    assert token.pk in capsys.readouterr().out
    assert admin.xlen("sg:{usage}:denials") == 0
    assert refused(admin) == []


def test_celery_works_under_worker(account, admin, celery):
    """Worker and beat as a site runs them: the broker's queues, its broadcasts and all tasks; nothing is refused."""
    url = account("worker")
    token = TokenFactory(policy=PolicyFactory())
    OutboxEntry.objects.create(kind="token", object_id=token.digest)
    celery(url)
    assert eventually(lambda: not OutboxEntry.objects.filter(revision=None).exists())

    with Limiter(url.replace("worker", "enforcer", 1), timeout=1.0, instance="proxy-1") as limiter:
        limiter.check(token.secret)
        assert eventually(lambda: Instance.objects.filter(pk="proxy-1").exists())

    assert eventually(lambda: UsageRow.objects.filter(token_id=token.pk, period="day", allowed=1).exists())
    assert answers_broadcasts(url)
    assert refused(admin) == []


@pytest.fixture
def celery(settings, tmp_path) -> Iterator[Callable[[str], None]]:
    """Start a worker and a beat that use the store at this address; both are killed after the test."""
    started = []

    def start(url: str) -> None:
        for role in (("worker", "--concurrency", "1"), ("beat", "--pidfile", "", "--schedule", str(tmp_path / "beat"))):
            command = [sys.executable, "-m", "celery", "-A", "controlplane.celery", *role, "--loglevel", "WARNING"]
            process = subprocess.Popen(command, env=environment(url), cwd=settings.BASE_DIR, start_new_session=True)
            started.append(process)

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(url: str) -> dict[str, str]:
    name, user, port = (connection.settings_dict[key] for key in ("NAME", "USER", "PORT"))
    database = f"sqlite:///{name}" if connection.vendor == "sqlite" else f"postgres://{user}@127.0.0.1:{port}/{name}"
    given = {"DATABASE_URL": database, "SLUICEGATE_REDIS_URL": url, "DJANGO_SETTINGS_MODULE": "tests.quick_settings"}
    return {**os.environ, **given}


def answers_broadcasts(url: str) -> bool:
    """Ask as an operator does: ``celery inspect ping``; it waits for more answers unless one name is given."""
    command = [sys.executable, "-m", "celery", "-A", "controlplane.celery", "inspect", "ping", "--timeout", "5"]
    command += ["--destination", f"celery@{socket.gethostname()}"]
    return "pong" in subprocess.run(command, env=environment(url), capture_output=True, text=True, check=False).stdout


def test_an_account_with_the_rights_of_an_earlier_release_is_told_what_to_do(account, admin, caplog):
    """As after an upgrade without ``store_acl --apply``. "No permissions to access a key" was all that the log said."""
    admin.xadd("sg:{usage}:denials", {"denials": "[]"})
    account("worker")
    lost = [rule.replace("~sg:{usage}:denials", "") for rule in acl.worker(Keys()) if rule not in acl.BLANK]
    admin.execute_command("ACL SETUSER", "worker", *acl.BLANK, *lost)

    assert tasks.drain() == 0

    assert "Update the accounts with manage.py store_acl --apply." in caplog.text
