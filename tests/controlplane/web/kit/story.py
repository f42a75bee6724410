"""One installation as an operator knows it: projects, policies, tokens, and the traffic of the last days."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from axes.models import AccessAttempt
from django.apps import apps
from django.db.models import Model
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.core import store
from controlplane.core.periods import start_of
from controlplane.objects.emergency.actions import suspend_value
from controlplane.objects.keys.actions import issue_management_key
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.actions import replace_limits, set_global_policy
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.actions import issue_token, rotate_token
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.jobs import run
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.tasks import collect_heartbeats
from controlplane.traffic.callers import recording
from controlplane.traffic.fleet.heartbeats import live_instances
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reports import daily_reports
from controlplane.traffic.reports.models import MonthRow
from controlplane.traffic.reservations.models import LOST, Reservation
from controlplane.traffic.stream.batches import Row, SettledRow
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import DeniedRequest, MeteredRow, UsageRow
from enforcement import Limiter
from enforcement.metering.tally import MeteredCounts
from tests.controlplane.objects.people.world import alerted
from tests.factories import MembershipFactory, ModelPriceFactory, PolicyDraftFactory

MAREN, JONAS = Actor("maren", "admin"), Actor("jonas", "admin")
ZONE = "Europe/Berlin"
BERLIN = ZoneInfo(ZONE)
DAY = {"calendar": "day", "window_seconds": None, "time_zone": ZONE}
MONTH = {"calendar": "month", "window_seconds": None, "time_zone": ZONE}
POLICIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "platform-guard": ("Every request", [{"name": "per-minute", "quota": 600_000}]),
    "team-cap": (
        "A whole project",
        [
            {"name": "team-day", "quota": 400_000, **DAY},
            {"name": "team-minute", "quota": 30, "mode": "shadow"},
        ],
    ),
    "chat-free": (
        "Chat, free plan",
        [
            {"name": "per-minute", "quota": 20, "algorithm": "sliding_window"},
            {"name": "per-day", "quota": 5_000, **DAY},
            {"name": "llm-budget", "quota": 40_000_000, "unit": "micros", **MONTH},
        ],
    ),
    "partner-silver": ("Partners, silver", [{"name": "per-month", "quota": 100_000, **MONTH}]),
    "partner-trial": (
        "Partners, trial",
        [
            {"name": "per-minute", "quota": 10, "on_store_failure": "deny"},
            {"name": "logins", "quota": 20, "window_seconds": 3600, "match_path": "/login", "partition_by": ["ip"]},
        ],
    ),
    "search-basic": (
        "Search",
        [
            {"name": "per-second", "quota": 20, "window_seconds": 1, "algorithm": "token_bucket", "burst": 40},
            {"name": "per-day", "quota": 5_000, "mode": "shadow", **DAY},
        ],
    ),
}
PROJECTS = {"chat": "Chat", "partners": "Partner portal", "search": "Search", "mobile": "Mobile apps"}
# The name, the project, the policy, the team and the requests of a busy hour.
TOKENS = [
    ("kestrel-desk", "chat", "chat-free", "support", 130),
    ("halden-web", "chat", "chat-free", "retail", 170),
    ("fjordline-batch", "chat", "chat-free", "freight", 110),
    ("osprey-tiles", "chat", "chat-free", "maps", 60),
    ("norrsken-cms", "chat", "chat-free", "media", 30),
    ("pinehall-ci", "chat", "chat-free", "platform", 15),
    ("larkfield-api", "partners", "partner-silver", "", 900),
    ("tessera-etl", "partners", "partner-silver", "", 620),
    ("umbra-sync", "partners", "partner-trial", "", 450),
    ("corvid-search", "search", "search-basic", "", 1400),
    ("dunmore-pos", "mobile", "search-basic", "", 700),
    ("brightwater-ios", "mobile", None, "", 240),
]


@dataclass
class Story:
    """What was made: the rows by the name of their model, tokens by name, and the denial that everybody asks about."""

    now: datetime
    tokens: dict[str, Token] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    decision: str = ""
    rows: dict[str, Model] = field(default_factory=dict)


@contextmanager
def played(url: str) -> Iterator[Story]:
    """Yield the installation, published to the store at *url*, while its proxies run."""
    story = Story(timezone.now())
    with ExitStack() as fleet:
        for number in (2, 3):
            fleet.enter_context(Limiter(url, timeout=2.0, instance=f"eu-fra-{number}"))
        _people(story)
        _set_up(story)
        _history(story)
        with Limiter(url, timeout=2.0, instance="eu-fra-1") as proxy:
            _traffic(story, proxy)
        drain(timezone.now())
        story.decision = DeniedRequest.objects.filter(token_id=story.tokens["kestrel-desk"].pk).first().decision
        fleet.enter_context(Limiter(url, timeout=2.0, instance="eu-fra-1"))
        _afterwards(story)
        _acknowledged()
        story.rows = _rows(story)
        yield story


def friday(now: datetime) -> datetime:
    """Return the next Friday at 18:00 in Berlin, which may be today."""
    local = now.astimezone(BERLIN)
    evening = local.replace(hour=18, minute=0, second=0, microsecond=0) + timedelta(days=(4 - local.weekday()) % 7)
    return evening if evening > local else evening + timedelta(days=7)


def _people(story: Story) -> None:
    for slug, name in PROJECTS.items():
        project = Project(slug=slug, name=name, time_zone=ZONE)
        with change(actor=MAREN, reason="launch") as tx:
            project.full_clean()
            project.save()
            tx.created(project)
        story.projects[slug] = project
    for username, slug, role in (("ines", "chat", "viewer"), ("jonas", "chat", "editor"), ("priya", "chat", "owner")):
        MembershipFactory(user__username=username, project=story.projects[slug], role=role)


def _set_up(story: Story) -> None:
    for slug, (name, limits) in POLICIES.items():
        policy = Policy(slug=slug, name=name)
        with change(actor=MAREN, reason="launch") as tx:
            policy.full_clean()
            policy.save()
            for position, values in enumerate(limits):
                fields = {"algorithm": "fixed_window", "window_seconds": 60, "position": position, **values}
                limit = policy.limits.model(policy=policy, **fields)
                limit.full_clean()
                limit.save()
            tx.created(policy)
        story.policies[slug] = policy
    with change(actor=MAREN, reason="every proxy") as tx:
        set_global_policy(tx, story.policies["platform-guard"])
    chat = story.projects["chat"]
    with change(actor=MAREN, reason="team contract") as tx:
        before = chat.as_record()
        chat.policy = story.policies["team-cap"]
        chat.save()
        tx.updated(chat, before)
    for number, (name, project, slug, team, _) in enumerate(TOKENS):
        owner, policy = story.projects[project], story.policies.get(slug or "")
        ends = story.now + timedelta(days=2 if name == "umbra-sync" else 90 + number)
        labels = {"team": team, "plan": "free"} if team else {}
        with change(actor=Actor("partner-portal", "api", f"req-{number}"), reason="sign-up") as tx:
            token, secret = issue_token(tx, project=owner, name=name, policy=policy, labels=labels, expires_at=ends)
        story.tokens[name], story.secrets[name] = token, secret
    _raise_quota(story, 25)


def _raise_quota(story: Story, quota: int) -> None:
    policy = story.policies["chat-free"]
    with change(actor=JONAS, reason="support asked") as tx:
        before = policy.as_record()
        first, *others = policy.limits.all()
        replace_limits(tx, policy, [first.as_value(quota=quota), *(limit.as_value() for limit in others)])
        tx.updated(policy, before)


def _busy(at: datetime) -> float:
    """Return how busy an hour is: from 0.1 at night to 1 in the afternoon."""
    return 0.55 - 0.45 * math.cos((at.astimezone(BERLIN).hour - 3) / 24 * 2 * math.pi)


def _history(story: Story) -> None:
    """Add a week of usage as the drain of usage would: by ten minutes in the last day, and by hours before."""
    dice, hour = random.Random(7), start_of("hour", story.now)
    steps = [(hour - timedelta(hours=back), 1.0) for back in range(168, 24, -1)]
    steps += [(hour - timedelta(minutes=10 * back), 1 / 6) for back in range(144, 0, -1)]
    rows: list[Row] = []
    settled: list[SettledRow] = []
    limits = {slug: policy.limits.exclude(unit="micros")[0].name for slug, policy in story.policies.items()}
    for at, part in steps:
        for name, _, slug, _, busy in TOKENS:
            sent = int(busy * part * _busy(at) * dice.uniform(0.7, 1.3))
            rows += _usage(story, name, at, sent, dice, limits.get(slug or ""))
            if name in ("kestrel-desk", "halden-web", "fjordline-batch"):
                settled.append(_metered(story, name, at, sent))
    rollup.add(rows, story.now)
    rollup.add_metered(settled, story.now)
    recording.add(rows, story.now)
    recording.fold(story.now)


def _usage(story: Story, name: str, at: datetime, sent: int, dice: random.Random, limit: str | None) -> list[Row]:
    token = story.tokens[name]
    denied = sent // 5 if name == "umbra-sync" else int(sent * dice.choice([0, 0, 0, 0.02, 0.09]))
    would = sent // 4 if name in ("corvid-search", "halden-web") and _busy(at) > 0.8 else 0
    counts = (sent - denied, denied, would, sent - denied)
    spread = (0b1111 << dice.randrange(50), *[sent // 6] * 6)
    found = [Row(at, (token.project_id, token.pk, "", "", "requests"), counts, spread)]
    if limit:
        of_limit = (token.project_id, token.pk, token.policy_id, limit, "requests")
        found.append(Row(at, of_limit, (sent - denied, denied, 0, sent - denied)))
    if would:
        policy, shadow = ("search-basic", "per-day") if name == "corvid-search" else ("team-cap", "team-minute")
        of_shadow = (token.project_id, token.pk, story.policies[policy].pk, shadow, "requests")
        found.append(Row(at, of_shadow, (sent, 0, would, sent)))
    return found


def _metered(story: Story, name: str, at: datetime, sent: int) -> SettledRow:
    token, model = story.tokens[name], "gpt-4o-mini" if name == "kestrel-desk" else "gpt-4o"
    counts = MeteredCounts(
        requests=sent,
        input=900 * sent,
        cached_input=120 * sent,
        output=210 * sent,
        micros=3_100 * sent,
        estimated_input=880 * sent,
    )
    return SettledRow(at, (token.project_id, token.pk, model, "exact"), False, 1, counts)


def _traffic(story: Story, proxy: Limiter) -> None:
    """Send what the store counts, and the requests of the minute about which kestrel-desk asks."""
    request = {"method": "POST", "path": "/v1/chat/completions", "ip": "203.0.113.24", "model": "gpt-4o-mini"}
    for name, costs in (
        ("larkfield-api", 96_410),
        ("tessera-etl", 84_130),
        ("corvid-search", 12),
        ("dunmore-pos", 9),
        ("halden-web", 21),
        ("kestrel-desk", {"requests": 1, "micros": 36_710_000}),
    ):
        proxy.check(story.secrets[name], costs, {"ip": "198.51.100.7"})
    for _ in range(40):
        proxy.check(story.secrets["kestrel-desk"], 1, request)
    for _ in range(17):
        proxy.check(story.secrets["umbra-sync"], 1, {"ip": "198.51.100.9"})


def _afterwards(story: Story) -> None:
    """Do what follows in such a day: an override, a rotation, a lost reservation, a suspension, a job and a report."""
    kestrel, chat, now = story.tokens["kestrel-desk"], story.projects["chat"], story.now
    limit = story.policies["chat-free"].limits.get(name="per-minute")
    with change(actor=JONAS, reason="load test, SUP-4471") as tx:
        override = Override(
            limit=limit, token=kestrel, quota=60, reason="load test, SUP-4471", ends_at=friday(now + timedelta(hours=1))
        )
        save_override(tx, override)
    with change(actor=MAREN, reason="quarterly") as tx:
        rotate_token(tx, story.tokens["pinehall-ci"], 86_400)
    with change(actor=MAREN, reason="for deployments") as tx:
        issue_management_key(tx, name="ci-deploy", scopes=["policies:read", "policies:write"], projects=[chat])
    with change(actor=JONAS, reason="scraper") as tx:
        suspend_value(tx, "session", "b7f1c0", chat)
    Reservation.objects.create(
        id=f"{chat.pk}.{'5e' * 16}",
        project_id=chat.pk,
        token_id=kestrel.pk,
        at=now - timedelta(hours=2),
        expires_at=now - timedelta(hours=1),
        state=LOST,
        model="gpt-4o",
        instance="us-iad-2",
        amounts=[{"policy": "chat-free", "limit": "llm-budget", "unit": "micros", "permits": 24_000}],
    )
    lost = {"host": "vm-us-7", "version": "0.3.0", "state": "ok", "started_at": now - timedelta(days=3)}
    for number in (2, 3):
        seen = now - timedelta(minutes=31)
        Instance.objects.create(pk=f"us-iad-{number}", seen_at=seen, revision=tx.revision or 0, **lost)
        # It has not said goodbye, so it is still in the set of the store.
        store.connection().zadd(store.keys().instances, {f"us-iad-{number}": int(seen.timestamp() * 1_000_000)})
    for pattern, price in (("gpt-4o", 2_500_000), ("gpt-4o-mini", 150_000)):
        ModelPriceFactory(pattern=pattern, input=price, output=4 * price)
    alerted(chat, "chat")
    AccessAttempt.objects.create(username="maren", ip_address="192.0.2.1", failures_since_start=2)
    day = (now - timedelta(days=1)).date()
    daily_reports.write(day, now)
    run.start(
        "test",
        "Revoke 1,950 tokens of 5 projects",
        created_by="jonas",
        channel="admin",
        projects=[chat],
        total=1_950,
        done=1_000,
        state="running",
        reason="A leak",
    )


def _acknowledged() -> None:
    """Wait until each proxy runs the newest revision, and save that."""
    newest, deadline = Revision.objects.latest("number").number, time.monotonic() + 30
    while any(instance.revision < newest for instance in live_instances()):
        assert time.monotonic() < deadline, [(instance.pk, instance.revision) for instance in live_instances()]
        time.sleep(0.02)
    collect_heartbeats()


def _rows(story: Story) -> dict[str, Model]:
    """Return a row of each model, by the names that addresses have."""
    kestrel, chat = story.tokens["kestrel-desk"], story.projects["chat"]
    of_kestrel = {"token_id": kestrel.pk}
    rows: list[Any] = [kestrel, chat, story.policies["chat-free"], story.policies["chat-free"].limits.first()]
    rows += [UsageRow.objects.filter(**of_kestrel).first(), MeteredRow.objects.filter(**of_kestrel).first()]
    rows += [DeniedRequest.objects.filter(**of_kestrel).first(), MonthRow.objects.filter(**of_kestrel).first()]
    rows += [
        Reservation.objects.first(),
        Override.objects.first(),
        AuditEntry.objects.first(),
        Instance.objects.first(),
    ]
    rows += [Revision.objects.order_by("-number")[2], ModelPrice.objects.first(), AccessAttempt.objects.first()]
    rows += [chat.memberships.first(), chat.memberships.first().user, chat.suspended_values.first()]
    rows += [found for found in (OutboxEntry.objects.first(),) if found]
    rows += [PolicyDraftFactory(policy=story.policies["chat-free"])]
    for model in ("DailyReport", "Job", "ManagementKey", "Destination", "Delivery", "AlertRule", "AlertEvent"):
        rows += [_first(model)]
    return {f"{row._meta.app_label}_{row._meta.model_name}": row for row in rows}


def _first(name: str) -> Model:
    return next(model.objects.first() for model in apps.get_models() if model.__name__ == name)
