"""Shards of usage on a cluster, where each pipeline and transaction needs its keys in one slot."""

from collections.abc import Iterator

import pytest
from django.db.models import Sum
from django.utils import timezone

from controlplane.core import store
from controlplane.traffic.stream import streams
from controlplane.traffic.usage.drain import DrainResult, drain
from controlplane.traffic.usage.models import UsageRow
from enforcement.engine.duties import UsageDelivery
from enforcement.model.documents import parse_token
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.store.client import connect
from enforcement.usage.counts import UsageLog
from tests.enforcement.published import token
from tests.enforcement.topologies import Cluster

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]


@pytest.fixture
def cluster(settings) -> Iterator[Cluster]:
    """Three primaries."""
    settings.DRAINS = 2
    with Cluster(replicas=False) as cluster:
        settings.REDIS_URL = cluster.url
        yield cluster


def test_shards_are_announced_written_and_drained_on_a_cluster(cluster):
    """Their lengths are read at once, and an entry is moved to the rejected ones in one transaction."""
    now, keys = timezone.now(), store.keys()
    assert drain(now) == DrainResult()
    log = UsageLog("proxy-1")
    for number in range(400):
        entry = TokenEntry(parse_token(dumps(token(id=f"tok_{number}"))))
        log.of(entry, []).passed(int(now.timestamp() // 60), 1, [])

    with connect(cluster.url, timeout=1.0) as client:
        UsageDelivery(client, keys, log).deliver()
        client.xadd(keys.usage_shard(5), {"id": "broken"})

        lengths = {stream.shard: length for stream, length in streams.lengths(store.connection()).items() if length}
        assert lengths == {0: 1, 1: 1, 2: 1, 3: 1, 5: 1}
        assert drain(now) == DrainResult(counted=4, rejected=1)
        assert client.xlen(f"{keys.usage}:rejected") == 1
    assert UsageRow.objects.filter(period="minute").aggregate(n=Sum("allowed"))["n"] == 400
    assert sum(streams.lengths(store.connection()).values()) == 0
