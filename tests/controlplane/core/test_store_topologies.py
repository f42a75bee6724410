"""The control plane on a store of several servers: whatever it writes and reads there, over the same code as ever."""

import json

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.operations.explain import live_counters
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.reconcile import queue_unknown_tokens, reconcile
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.usage import checkpoints, drain
from controlplane.traffic.usage.models import UsageRow
from enforcement import Limiter
from tests.enforcement.topologies import Cluster, SentinelTrio, execute
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module", params=[Cluster, SentinelTrio], ids=["cluster", "sentinel"])
def servers(request):
    with request.param() if request.param is SentinelTrio else Cluster(replicas=False) as servers:
        yield servers


@pytest.fixture
def several(servers, settings):
    """Give servers that the settings name, and nothing in them."""
    settings.REDIS_URL = servers.url
    for server in servers.servers:
        if execute(server, "ROLE")[0] == "master":
            execute(server, "FLUSHALL")
            execute(server, "FUNCTION", "FLUSH")
    return servers


@pytest.fixture
def token():
    """Give a token under a global policy, its project's and its own; the longest counts a day, and is kept."""
    policies = [PolicyFactory(everywhere=True), PolicyFactory(), PolicyFactory()]
    for policy, quota in zip(policies, (50, 20, 10), strict=True):
        LimitFactory(policy=policy, name="day", quota=quota, window_seconds=None, calendar="day")
    return TokenFactory(project=ProjectFactory(policy=policies[1]), policy=policies[2])


def test_what_is_published_is_decided_reported_and_kept(several, token, actor):
    """From the outbox to a decision, its heartbeat, its usage, its counters as people see them, and a reset."""
    publisher.publish_all()
    with Limiter(several.url, timeout=1.0) as limiter:
        assert eventually(lambda: limiter.check(token.secret, costs=0).source == "store")
        decisions = [limiter.check(token.secret) for _ in range(4)]
        seen = live_counters.counters_of(token)
        assert eventually(lambda: heartbeats.collect(timezone.now()) == 1)
    drained = drain.drain(timezone.now())
    kept = checkpoints.checkpoint(timezone.now())
    with change(actor=actor) as tx:
        forgotten = live_counters.reset(tx, token)

    assert [d.remaining for d in decisions] == [9, 8, 7, 6]
    assert {d.source for d in decisions} == {"store"}
    assert [(counter.scope, counter.used) for counter in seen] == [("global", 4), ("project", 4), ("token", 4)]
    assert drained.counted >= 1
    assert sum(row.cost for row in UsageRow.objects.filter(limit_name="", period="minute")) == 4
    assert kept.complete
    assert forgotten.count == 1
    assert [counter.used for counter in live_counters.counters_of(token)] == [4, 4, 0]


def test_what_a_server_lost_is_repaired(several, token):
    """The functions of one server, a document and a token that nobody knows: seen and mended."""
    publisher.publish_all()
    primary = next(server for server in several.servers if execute(server, "ROLE")[0] == "master")
    execute(primary, "FUNCTION", "FLUSH")
    assert reconcile() == ["the function library was missing"]
    assert execute(primary, "FUNCTION", "LIST")

    client = publisher.store.connection()
    client.hdel("sg:{doc}:documents", f"policy:{token.policy_id}")
    client.set(f"sg:{{doc}}:token:{'0' * 64}", json.dumps({}))
    assert len(reconcile(full=True)) == 1
    assert queue_unknown_tokens() == 1
    assert reconcile() == []


def test_accounts_are_not_installed_in_one_server_of_several(several):
    """They are not replicated: the command says where its file belongs, and does nothing."""
    with pytest.raises(CommandError, match="every server"):
        call_command("store_acl", "--apply")


def test_celery_and_the_cache_need_one_server(settings):
    """A store of several servers without one for them is an error at start, and not a worker that never connects."""
    settings.BROKER_URL = "redis+cluster://127.0.0.1:1"

    assert "sluicegate.E004" in [message.id for message in run_checks()]
