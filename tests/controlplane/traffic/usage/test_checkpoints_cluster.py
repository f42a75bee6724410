"""Durable quotas on a cluster: a primary that is away, and one that restarts with nothing."""

from collections.abc import Iterator

import pytest
import redis
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from controlplane.traffic.usage import checkpoints
from controlplane.traffic.usage.models import Checkpoint
from enforcement import Limiter
from tests.enforcement.topologies import Cluster, execute
from tests.enforcement.world import eventually
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

QUOTA = 10
DOCUMENTS, LOCK = "sg:{doc}:documents", "sg:{lock}:checkpoint"


@pytest.fixture
def cluster(settings) -> Iterator[Cluster]:
    """Three primaries."""
    with Cluster(replicas=False) as cluster:
        settings.REDIS_URL = cluster.url
        yield cluster


def token_on(cluster: Cluster, number: int, policy) -> Token:
    """A token of a project whose counters lie on this primary."""
    ident = next(pk for pk in iter(lambda: new_id("proj"), None) if cluster.index_of(f"sg:{{{pk}}}:x") == number)
    return TokenFactory(project=ProjectFactory(id=ident), policy=policy)


def kept(token: Token) -> list[int]:
    return list(Checkpoint.objects.filter(tag=token.project_id).values_list("used", flat=True))


def test_a_primary_that_is_away_and_restarts_empty_concerns_its_projects_alone(cluster):
    """The others are kept as ever; its own are decided without it, get their counts back, and admit no more."""
    needed = {cluster.index_of(DOCUMENTS), cluster.index_of(LOCK)}
    doomed = next(i for i in range(3) if i not in needed)
    policy = LimitFactory(quota=QUOTA, window_seconds=None, calendar="month").policy
    lost, other = token_on(cluster, doomed, policy), token_on(cluster, cluster.index_of(DOCUMENTS), policy)
    publisher.publish_all()
    with Limiter(cluster.url, timeout=0.5) as limiter:
        assert [limiter.check(token.secret, costs=7).source for token in (lost, other)] == ["store", "store"]
        assert checkpoints.checkpoint(timezone.now()).kept == 2

        cluster.primaries[doomed].kill()
        assert limiter.check(other.secret).source == "store"
        with pytest.raises(redis.ConnectionError):
            checkpoints.checkpoint(timezone.now())
        assert (kept(lost), kept(other)) == ([7], [8])

        cluster.primaries[doomed].start()
        assert execute(cluster.primaries[doomed], "DBSIZE") == 0
        assert eventually(lambda: limiter.check(lost.secret, costs=0).cause == "not_restored", 10)
        assert limiter.check(other.secret, costs=0).source == "store"
        assert eventually(lambda: _restored() == 1, 10)
        assert eventually(lambda: limiter.check(lost.secret, costs=0).source == "store", 10)
        assert sum(limiter.check(lost.secret).allowed for _ in range(QUOTA)) == QUOTA - 7


def _restored() -> int:
    try:
        return checkpoints.checkpoint(timezone.now()).restored
    except redis.RedisError:  # the node is not yet taken back by the others
        return 0
