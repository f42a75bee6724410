"""Which instances are behind, lost or degraded, and which limits they cannot enforce."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter

from controlplane.changes.audit.models import AuditEntry
from controlplane.core.optional import HEARTBEATS, optional
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.health.condition import Condition, Level, Target, counted, named
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.traffic.fleet.heartbeats import Fleet, lost_instances
from controlplane.traffic.fleet.models import Instance
from enforcement.store_calls.health import UNMETERED, UNSUPPORTED, Judgement, behind, judge

INSTANCES = Target("fleet.Instance")
# Instances that were lost longer ago are in the table of the fleet only.
LOST_LATELY = timedelta(hours=1)
# An instance has a revision within a second, and says so with its next heartbeat.
ON_ITS_WAY = timedelta(seconds=15)
# What an instance goes on to admit that lacks it.
CUTS_OFF = ("token.revoke", "token.suspend", "project.suspend", "suspension.create")


@optional(HEARTBEATS, lambda now: [])
def lost_now(now: datetime) -> list[Instance]:
    """Return the instances that were lost within a day, or none if the store cannot say."""
    return lost_instances(now)


def of_fleet(fleet: Fleet, lost: Sequence[Instance], now: datetime) -> Iterator[Condition]:
    """Yield what is the matter with the instances. Nobody knows while the store is away."""
    if fleet.unknown:
        return
    yield from _behind(fleet, now)
    yield from _lost(lost, fleet, now)
    judged = judge((instance.report() for instance in fleet), 0)
    yield from _degraded(judged)
    yield from _limits(judged)
    yield from _caps(fleet)


def _behind(fleet: Fleet, now: datetime) -> Iterator[Condition]:
    due = Revision.objects.filter(published_at__lte=now - ON_ITS_WAY).order_by("-number").defer("changes").first()
    settled = [one for one in fleet if one.started_at is None or now - one.started_at >= ON_ITS_WAY]
    late = behind((one.report() for one in settled), due.number if due else 0)
    names = [name for it in late for name in it.instances]
    if due is None or not names:
        return
    first = min(one.revision for one in settled if one.pk in names)
    missing = Revision.objects.filter(number__gt=first).order_by("number")
    since = missing.values_list("published_at", flat=True).first()
    admits = _cut_off_since(first)
    are, still = ("is", "admits") if len(names) == 1 else ("are up to", "admit")
    fault = f"{named(names)} {are} {counted(due.number - first, 'revision')} behind"
    text = f"and still {still} what was revoked or suspended ({admits:,})" if admits else ""
    level = Level.URGENT if admits else Level.LOOK
    yield Condition("behind", level, fault, text, *_link(names), since, weight=len(names))


def _link(names: Sequence[str]) -> tuple[str, Target]:
    """Return the link to the only one of some instances, or to the list of all."""
    if len(names) > 1:
        return "See the instances", INSTANCES
    return f"See {names[0]}", Target("fleet.Instance", names[0])


def _cut_off_since(revision: int) -> int:
    """Return how many tokens, projects and values were cut off by revisions after this one."""
    changes = PublishedChange.objects.filter(revision__gt=revision).values("change")
    return AuditEntry.objects.filter(action__in=CUTS_OFF, change__in=changes).count()


def _lost(lost: Iterable[Instance], fleet: Fleet, now: datetime) -> Iterator[Condition]:
    lately = [instance for instance in lost if instance.seen_at > now - LOST_LATELY]
    if not lately:
        return
    names = [instance.pk for instance in lately]
    fault = f"{named(names)} {'is' if len(names) == 1 else 'are'} lost"
    text = f"{len(fleet):,} still report{'s' if len(fleet) == 1 else ''}"
    last = max(instance.seen_at for instance in lately)
    yield Condition("lost", Level.URGENT, fault, text, *_link(names), last, weight=len(names))


def _degraded(judged: Iterable[Judgement]) -> Iterator[Condition]:
    for it in judged:
        if it.level == "problem":
            names = [*it.instances]
            fault = f"{named(names)} {'is' if len(names) == 1 else 'are'} degraded"
            text = f"{it.text}: {it.advice}"
            yield Condition(f"degraded|{it.kind}", Level.URGENT, fault, text, "See the instances", INSTANCES)


def _limits(judged: Sequence[Judgement]) -> Iterator[Condition]:
    """Yield a condition of each limit that counts nothing, and of each that instances cannot enforce."""
    found = [it for it in judged if it.kind in (UNMETERED, UNSUPPORTED)]
    slugs = {it.limit.partition("/")[0] for it in found}
    known = dict(Policy.objects.filter(slug__in=slugs).values_list("slug", "pk")) if slugs else {}
    for it in found:
        slug = it.limit.partition("/")[0]
        target = Target("policies.Policy", known[slug]) if slug in known else INSTANCES
        if it.kind == UNMETERED:
            fault, text = f"{it.limit} counts nothing", f"{it.text}"
            yield Condition(f"unmetered|{it.limit}", Level.LOOK, fault, text, "Fix the unit", target)
        else:
            deny = "denies" if len(it.instances) == 1 else "deny"
            fault = f"{counted(len(it.instances), 'instance')} {deny} every request under {it.limit}"
            subject = f"unsupported|{it.limit}|{it.text}"
            yield Condition(subject, Level.URGENT, fault, it.text, "See the instances", INSTANCES)


def _caps(fleet: Iterable[Instance]) -> Iterator[Condition]:
    """Yield a condition of each project in which a limit recently had more values than the project's cap allows."""
    full = sorted({limited for instance in fleet for limited in instance.overflowing})
    if not full:
        return
    projects = Project.objects.in_bulk({project for project, _, _ in full})
    slugs = dict(Policy.objects.filter(pk__in={policy for _, policy, _ in full}).values_list("pk", "slug"))
    for project, limits in groupby(full, key=itemgetter(0)):
        if project in projects:
            names = [f"{slugs.get(policy, policy)}/{name}" for _, policy, name in limits]
            fault = f"{projects[project]} has more values than its cap"
            text = f"the other values of {named(names)} share one counter"
            target = Target("projects.Project", project)
            yield Condition(f"cap|{project}", Level.LOOK, fault, text, "Raise the cap", target, project=project)
