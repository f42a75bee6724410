"""How many instances have a revision, and after how long the last of them had it."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.models import Instance

# An instance that has not reported a revision by then is counted as one without it.
WAITED = timedelta(minutes=10)
# Far more than are published between two runs. The others follow in the next run.
AT_ONCE = 2000


def note(now: datetime) -> int:
    """
    Save for each revision whose numbers are not final how many instances have it, and return how many have final ones.

    The saved heartbeats are read, so this follows their collection. Two runs at the same time write the same numbers.
    """
    pending = Revision.objects.filter(is_counted=False).defer("changes").order_by("number")
    revisions = list(pending[:AT_ONCE])
    if not revisions:
        return 0
    fleet = list(Instance.objects.running(now).only("pk", "revision", "revision_at", "started_at", "seen_at"))
    for revision in revisions:
        _count(revision, fleet, now)
    Revision.objects.bulk_update(revisions, ["live_on", "instances", "lag_ms", "is_counted"], batch_size=500)
    return sum(revision.is_counted for revision in revisions)


def _count(revision: Revision, fleet: Iterable[Instance], now: datetime) -> None:
    """Set the numbers of a revision by the instances that ran when it was published."""
    published = revision.published_at or revision.at
    ran = [instance for instance in fleet if instance.started_at is None or instance.started_at <= published]
    having = [instance for instance in ran if instance.revision >= revision.number]
    everywhere = bool(ran) and len(having) == len(ran)
    if ran or revision.instances is None:
        revision.live_on, revision.instances = len(having), len(ran)
    revision.lag_ms = max(lag_ms(instance, published) for instance in having) if everywhere else None
    revision.is_counted = everywhere or now - published > WAITED


def lag_ms(instance: Instance, published: datetime) -> int:
    """
    Return how many milliseconds after its publication an instance had a revision.

    An instance that got a later one meanwhile had it by then at the latest. So had one of an earlier release, which
    does not report when, by its last heartbeat.
    """
    got = instance.revision_at or instance.seen_at
    # The publication has the time of the control plane, whose clock may be ahead of the store's.
    return max(0, round((got - published) / timedelta(milliseconds=1)))
