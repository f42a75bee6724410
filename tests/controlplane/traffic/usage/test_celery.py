"""Worker and beat as a site runs them: processes of their own, on a real broker."""

import json
import os
import signal
import time

import pytest

from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage.models import Checkpoint, UsageRow
from enforcement import Limiter
from tests.controlplane.stack.running import eventually
from tests.controlplane.traffic.usage.conftest import row
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(start, tmp_path):
    """A worker with two processes, and a beat that knows the whole schedule."""
    celery = ("-m", "celery", "-A", "controlplane.celery")
    process = start(*celery, "worker", "--concurrency", "2", "--loglevel", "WARNING")
    start(*celery, "beat", "--pidfile", "", "--schedule", str(tmp_path / "schedule"), "--loglevel", "WARNING")
    return process


def now_minute() -> int:
    return int(time.time() // 60)


def write_heartbeat(client) -> None:
    now_us = int(time.time() * 1_000_000)
    heartbeat = {"id": "proxy-1", "state": "ok", "revision": 1, "started_at_us": now_us, "seen_at_us": now_us}
    client.set("sg:{fleet}:instance:proxy-1", json.dumps(heartbeat), px=15_000)
    client.zadd("sg:{fleet}:instances", {"proxy-1": now_us})


def test_usage_arrives_pending_changes_go_out_and_heartbeats_are_seen(worker, report_usage, client_of_store):
    """Nobody calls a task: beat does, and the worker does them."""
    report_usage("proxy-1-1", row(now_minute(), allowed=7))
    OutboxEntry.objects.create(kind="project", object_id=ProjectFactory().pk)
    write_heartbeat(client_of_store)

    assert eventually(lambda: UsageRow.objects.filter(period="day", allowed=7).exists())
    assert eventually(lambda: not OutboxEntry.objects.filter(revision=None).exists())
    assert eventually(lambda: Instance.objects.filter(pk="proxy-1").exists())


def test_a_worker_goes_on_when_the_store_is_back(worker, report_usage, store):
    """The broker was killed, and nobody restarts the worker."""
    report_usage("proxy-1-1", row(now_minute()))
    assert eventually(lambda: UsageRow.objects.exists())
    store.kill()
    store.start()

    report_usage("proxy-1-2", row(now_minute(), token="tok_2"))

    assert eventually(lambda: UsageRow.objects.filter(token_id="tok_2").exists())


def test_a_killed_child_of_the_worker_is_replaced(worker, report_usage, client_of_store):
    """The process in which tasks run dies; usage goes on arriving."""
    report_usage("proxy-1-1", row(now_minute()))
    assert eventually(lambda: UsageRow.objects.exists())
    for child in children(worker.pid):
        os.kill(child, signal.SIGKILL)
    # A drain that was killed would hold its locks for up to thirty seconds.
    client_of_store.delete(*client_of_store.scan_iter("sg:{lock}:*"), "none")

    report_usage("proxy-1-2", row(now_minute(), token="tok_2"))

    assert eventually(lambda: UsageRow.objects.filter(token_id="tok_2").exists())


def test_quotas_outlive_a_store_that_is_killed_and_restarts_empty(worker, store):
    """
    Nobody calls anything but requests: the worker keeps the count, and gives it back before it is trusted again.

    Of what passed before the crash, only what came after the last checkpoint may be admitted a second time.
    """
    quota = 1_000
    token = TokenFactory(policy=LimitFactory(quota=quota, window_seconds=None, calendar="month").policy)
    publisher.publish_all()
    with Limiter(store.url, timeout=0.1) as limiter:
        before = sum(limiter.check(token.secret).allowed for _ in range(700))
        assert eventually(lambda: Checkpoint.objects.filter(used=700).exists())
        before += sum(limiter.check(token.secret).allowed for _ in range(20))
        kept = Checkpoint.objects.get().used
        store.kill()
        meanwhile = limiter.check(token.secret).allowed + limiter.check(token.secret).allowed
        store.start()
        assert eventually(lambda: limiter.check(token.secret, costs=0).source == "store")
        after = sum(limiter.check(token.secret).allowed for _ in range(quota))
        assert limiter.check(token.secret).source in ("store", "denial_cache")

    assert (before, kept >= 700, meanwhile) == (720, True, 2)
    assert quota <= before + meanwhile + after <= quota + before - kept


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
