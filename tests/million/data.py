"""The rows of an installation of any size. Of everything, one project and one policy have far more than the others."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import Group, User
from django.db import models, transaction

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.people.roles import EDITOR, OPERATORS, OWNER, VIEWER
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.traffic.callers.chunks import Chunk
from controlplane.traffic.callers.models import RecordedDay
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reports.models import MonthMetered, MonthRow
from controlplane.traffic.reservations.models import LOST, Reservation
from controlplane.traffic.usage.models import DecisionCount, DeniedRequest, MeteredRow, UsageRow
from tests.million.loading import load, trust_keys

NAMES = ("edge", "batch", "mobile", "partner", "search", "import", "report", "chat", "crawler", "billing")
TEAMS = 50
HOURS = 48
LIMITS_OF_A_POLICY = 3
# The limit of the first policy that is only counted.
SHADOW = "limit-1"


@dataclass(frozen=True)
class Size:
    """How many rows there are. The other tables follow the number of tokens."""

    tokens: int
    policies: int
    projects: int

    @property
    def changes(self) -> int:
        return self.tokens // 2

    @property
    def sums(self) -> int:
        return self.tokens // 2


def project(number: int) -> str:
    return f"proj_{number:026d}"


def policy(number: int) -> str:
    return f"pol_{number:026d}"


def token(number: int) -> str:
    return f"tok_{number:026d}"


@dataclass(frozen=True)
class Rows:
    """Makes the rows, as dictionaries of the values that differ from the defaults."""

    size: Size
    now: datetime

    def project_of(self, number: int) -> int:
        """Return the project of a token. The first project has a tenth of all tokens besides its share."""
        return 0 if number % 10 == 3 else number % self.size.projects

    def policy_of(self, number: int) -> int | None:
        """Return the policy of a token. Half of the tokens have the first policy, and a tenth has none."""
        return None if number % 10 == 9 else 0 if number % 10 in (0, 2, 3, 4, 6) else number % self.size.policies

    def projects(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.projects):
            named = {"slug": f"project-{number}", "name": f"Project {number}"}
            yield {"id": project(number), **named, "policy_id": policy(number % self.size.policies)}

    def policies(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.policies):
            name = f"{NAMES[number % len(NAMES)]}-{number}"
            yield {"id": policy(number), "slug": name, "name": name, "updated_at": self.now}

    def limits(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.policies * LIMITS_OF_A_POLICY):
            position = number % LIMITS_OF_A_POLICY
            # Above what most busy minutes have, and far above what an hour or a day has.
            values = {"name": f"limit-{position}", "quota": 740 * 60**position, "window_seconds": 60 * 60**position}
            if values["name"] == SHADOW and number < LIMITS_OF_A_POLICY:
                values |= {"mode": "shadow", "quota": 740}
            owner = policy(number // LIMITS_OF_A_POLICY)
            yield {"id": f"lim_{number:026d}", "policy_id": owner, "position": position, **values}

    def tokens(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.tokens):
            chosen, digest = self.policy_of(number), hashlib.sha256(b"%d" % number).hexdigest()
            end = (None, 200, 30, None, 400, None, 3, None, -5, None)[number % 10]
            yield {
                "id": token(number),
                "project_id": project(self.project_of(number)),
                "policy_id": None if chosen is None else policy(chosen),
                "name": f"{NAMES[number % len(NAMES)]}-{number}",
                "digest": digest,
                "prefix": f"sg_live_{digest[:4]}",
                "labels": {"team": f"team-{number % TEAMS}"} if number % 2 else {},
                "created_at": self.now - timedelta(seconds=60 * (self.size.tokens - number)),
                "expires_at": end and self.now + timedelta(days=end, seconds=number % 80_000),
                "revoked_at": self.now if number % 20 == 7 else None,
                "last_used_at": self.now - timedelta(seconds=number % 1_000_003) if number % 5 else None,
                "last_used_on": (self.now - timedelta(seconds=number % 1_000_003)).date() if number % 5 else None,
            }

    def overrides(self) -> Iterator[dict[str, Any]]:
        for number in range(max(60, self.size.tokens // 100)):
            end = self.now + timedelta(hours=number % 1_000 + 1)
            limit = f"lim_{number % (self.size.policies * LIMITS_OF_A_POLICY):026d}"
            values = {"quota": 5_000, "reason": f"launch {number}", "created_by": f"user-{number % 20}"}
            keys = {"id": f"ovr_{number:026d}", "limit_id": limit, "token_id": token(number * 7)}
            yield {**keys, "ends_at": end, **values}

    def changes(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.changes):
            of = number % self.size.tokens
            yield (
                self.change_of_policy(number)
                if self.is_of_policy(number)
                else {
                    "id": f"aud_{number:026d}",
                    "at": self.now - timedelta(seconds=30 * (self.size.changes - number)),
                    "actor": f"user-{number % 200}",
                    "channel": ("admin", "api", "api", "task")[number % 4],
                    "action": ("token.create", "token.update", "token.revoke", "token.update")[number % 4],
                    "object_type": "token",
                    "object_id": token(of),
                    "object_label": f"{NAMES[of % len(NAMES)]}-{of}",
                    "before": {"name": f"old-{of}", "expires_at": None},
                    "after": {"name": f"new-{of}", "expires_at": None},
                    "reason": f"ticket {number}",
                    "request_id": f"req-{number:032d}",
                    "change": f"chg_{number:026d}",
                    "project": project(self.project_of(of)),
                }
            )

    def is_of_policy(self, number: int) -> bool:
        """Return whether a change is one of a policy, as every third of those that have a revision."""
        revision = number - self.size.changes + self.size.policies + 1
        return revision > 0 and revision % 3 == 0

    def change_of_policy(self, number: int) -> dict[str, Any]:
        of = number % self.size.policies
        limits = [{"name": f"limit-{place}", "quota": 1_000, "window_seconds": 60} for place in range(3)]
        slug = f"{NAMES[of % len(NAMES)]}-{of}"
        names = {"object_type": "policy", "object_id": policy(of), "object_label": slug}
        return {
            "id": f"aud_{number:026d}",
            "at": self.now - timedelta(seconds=30 * (self.size.changes - number)),
            "actor": f"user-{number % 200}",
            "channel": "admin",
            "action": "policy.update",
            **names,
            "before": {"slug": slug, "limits": limits},
            "after": {"slug": slug, "limits": [{**limits[0], "quota": 900}, *limits[1:]]},
            "reason": f"ticket {number}",
            "change": f"chg_{number:026d}",
            "project": project(self.project_of(number)),
        }

    def revisions(self) -> Iterator[dict[str, Any]]:
        for number in range(1, self.size.policies + 1):
            at = self.now - timedelta(seconds=30 * (self.size.policies - number))
            kind = Revision.POLICY if number % 3 == 0 else Revision.TOKEN
            yield {"number": number, "at": at, "published_at": at, "by": "user-1", "kind": kind, "is_counted": True}

    def published(self) -> Iterator[dict[str, Any]]:
        for number in range(1, self.size.policies + 1):
            change = self.size.changes - 1 - self.size.policies + number
            yield {"change": f"chg_{max(change, 0):026d}" if change >= 0 else f"none_{number}", "revision_id": number}

    def sums(self) -> Iterator[dict[str, Any]]:
        """Yield sums of the last two days by the hour, and of the last minutes."""
        hour, minute = self.now.replace(minute=0, second=0, microsecond=0), self.now.replace(second=0, microsecond=0)
        for number in range(self.size.sums):
            period, at = "hour", hour - timedelta(hours=number % HOURS)
            if number % 20 == 0:
                period, at = "minute", minute - timedelta(minutes=number // 20 % 8)
            of, limited = (number // 2) % self.size.tokens, number % 2
            owner = policy(self.policy_of(of) or 0)
            named = {"policy_id": owner, "limit_name": "limit-0", "unit": "requests"} if limited else {"unit": ""}
            counts = {"allowed": number % 997, "denied": number % 13 if number % 20 == 11 else 0, "cost": number % 997}
            keys = {"project_id": project(self.project_of(of)), "token_id": token(of)}
            yield {"period": period, "at": at, **keys, **named, **counts}

    def project_counts(self) -> Iterator[dict[str, Any]]:
        """Yield the sums of all projects, for as long as each period is kept or the Overview reads it."""
        minute = self.now.replace(second=0, microsecond=0)
        hour = minute.replace(minute=0)
        spans = [("minute", minute, timedelta(minutes=1), 120), ("hour", hour, timedelta(hours=1), 15 * 24)]
        spans.append(("day", hour.replace(hour=0), timedelta(days=1), 60))
        for number in range(self.size.projects):
            for period, last, step, count in spans:
                for back in range(count):
                    counts = {"allowed": 90 * back + number, "denied": back % 7, "would_deny": back % 3}
                    yield {"period": period, "at": last - back * step, "project_id": project(number), **counts}

    def policy_counts(self) -> Iterator[dict[str, Any]]:
        """Yield the sums of most policies in the last hour and on some days, of the first one in every project."""
        minute = self.now.replace(second=0, microsecond=0)
        for number in range(self.size.policies):
            if number % 10 == 9:
                continue  # nothing has ever matched it
            of = range(self.size.projects) if number == 0 else [number % self.size.projects]
            for owner in of:
                keys = {"policy_id": policy(number), "project_id": project(owner)}
                for back in range(60):
                    counts = {"allowed": 5 * back, "denied": back % 7 if number % 20 == 0 else 0}
                    yield {"period": "minute", "at": minute - timedelta(minutes=back), **keys, **counts}
                for back in range(number % 40, number % 40 + 3):
                    day = minute.replace(hour=0, minute=0) - timedelta(days=back)
                    yield {"period": "day", "at": day, **keys, "allowed": 500, "denied": 5}

    def metered(self) -> Iterator[dict[str, Any]]:
        hour = self.now.replace(minute=0, second=0, microsecond=0)
        for number in range(self.size.tokens // 10):
            at = hour - timedelta(hours=number % HOURS)
            keys = {"project_id": project(self.project_of(number)), "token_id": token(number)}
            counts = {"requests": 5, "input": number % 10_007, "output": 90, "micros": number % 5_003}
            yield {"period": "hour", "at": at, **keys, "model": f"model-{number % 9}", "settled_as": "exact", **counts}

    def denials(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.tokens // 10):
            keys = {"project_id": project(self.project_of(number)), "token_id": token(number)}
            limit = {"policy_id": policy(self.policy_of(number) or 0), "limit_name": "limit-0"}
            at = self.now - timedelta(seconds=number)
            attributes = {"path": f"/v1/{number % 7}"}
            yield {"decision": f"dec-{number}", "at": at, "reason": "quota", **keys, **limit, "attributes": attributes}

    def recorded(self) -> Iterator[dict[str, Any]]:
        """Yield the requests of two days, of every hundredth token with the first policy."""
        days, bodies = [(self.now - timedelta(days=back)).date() for back in (1, 0)], [_busy_day(n) for n in range(20)]
        for number in range(0, self.size.tokens, 100):
            keys = {"project_id": project(self.project_of(number)), "token_id": token(number)}
            for day in days:
                yield {**keys, "day": day, **bodies[number // 100 % len(bodies)]}

    def months(self) -> Iterator[dict[str, Any]]:
        """Yield the sums of this month, of every fifth token and of its limit."""
        month = self.now.date().replace(day=1)
        for number in range(self.size.tokens // 5 * 2):
            of, limited = number // 2 * 5 + number // 2 % 5, number % 2
            named = {"policy_id": policy(self.policy_of(of) or 0), "limit_name": "limit-0"} if limited else {}
            keys = {"month": month, "project_id": project(self.project_of(of)), "token_id": token(of), **named}
            yield {**keys, "unit": "requests", "allowed": number % 9_973, "denied": number % 7, "cost": number % 9_973}

    def months_metered(self) -> Iterator[dict[str, Any]]:
        month = self.now.date().replace(day=1)
        for number in range(self.size.tokens // 10):
            keys = {"month": month, "project_id": project(self.project_of(number)), "token_id": token(number)}
            counts = {"requests": 50, "input": number % 10_007, "output": 900, "micros": number % 50_033}
            yield {**keys, "model": f"model-{number % 9}", **counts}

    def reservations(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.tokens // 20):
            pk, at = f"{project(self.project_of(number))}.{number:032x}", self.now - timedelta(minutes=number)
            keys = {"project_id": project(self.project_of(number)), "token_id": token(number)}
            yield {"id": pk, **keys, "at": at, "expires_at": at, "state": LOST, "model": "model-1"}

    def keys(self) -> Iterator[dict[str, Any]]:
        for number in range(self.size.projects * 3):
            named = {"name": f"key-{number}", "digest": f"{number:064d}", "prefix": "sg_mgmt_1234"}
            yield {"id": f"mgk_{number:026d}", **named, "scopes": ["projects:read"], "all_projects": True}

    def instances(self) -> Iterator[dict[str, Any]]:
        for number in range(20):
            yield {"id": f"host-{number}", "host": f"host-{number}", "state": "ok", "seen_at": self.now}


def _busy_day(number: int) -> dict[str, Any]:
    """Return what is recorded of a day with a request in many minutes, and some more in one of them."""
    minutes = [(at, 1, at * number % 60) for at in range(number % 7, 24 * 60, number % 3 + 1)]
    minutes.append((600 + number, 40 * number + 1, number))
    rows = [
        (at, sent, sent, 1 << second, [sent if part == second // 10 else 0 for part in range(6)])
        for at, sent, second in minutes
    ]
    chunk = Chunk.of(rows)
    sent = int(chunk.demand.sum())
    return {"requests": sent, "allowed": sent, "cost": sent, "hours": chunk.hours(), "body": chunk.body()}


def fill(size: Size, now: datetime) -> None:
    """Write all rows, in one transaction, because projects and policies name each other."""
    rows = Rows(size, now)
    tables: list[tuple[type[models.Model], Iterable[dict[str, Any]]]] = [
        (Project, rows.projects()),
        (Policy, rows.policies()),
        (Limit, rows.limits()),
        (Token, rows.tokens()),
        (Override, rows.overrides()),
        (AuditEntry, rows.changes()),
        (Revision, rows.revisions()),
        (PublishedChange, rows.published()),
        (UsageRow, rows.sums()),
        (DecisionCount, rows.project_counts()),
        (DecisionCount, rows.policy_counts()),
        (MeteredRow, rows.metered()),
        (DeniedRequest, rows.denials()),
        (RecordedDay, rows.recorded()),
        (MonthRow, rows.months()),
        (MonthMetered, rows.months_metered()),
        (Reservation, rows.reservations()),
        (ManagementKey, rows.keys()),
        (Instance, rows.instances()),
    ]
    with transaction.atomic():
        trust_keys()
        for model, made in tables:
            load(model, made)
        people(size)


def people(size: Size) -> None:
    """Create an operator, and five members of each project. Those of the first one are its owner and its viewer."""
    names = ["operator", *(f"member-{number}" for number in range(size.projects * 5))]
    users = User.objects.bulk_create([User(username=name, is_staff=True) for name in names])
    users[0].groups.add(Group.objects.get_or_create(name=OPERATORS)[0])
    roles = (OWNER, VIEWER, EDITOR, VIEWER, VIEWER)
    rows = [
        Membership(user=user, project_id=project(number // 5), role=roles[number % 5])
        for number, user in enumerate(users[1:])
    ]
    Membership.objects.bulk_create(rows)
