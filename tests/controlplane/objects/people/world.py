"""Two projects with a row of every kind, whose names say whose they are: "alpha" and "bravo"."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.db.models import Model
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.projects.models import Project
from controlplane.operations.alerts.events import decide
from controlplane.operations.alerts.findings import AlertFinding, Found
from controlplane.operations.jobs import run
from controlplane.operations.webhooks.models import Delivery
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reports.models import MonthRow
from controlplane.traffic.reservations.models import LOST, Reservation
from controlplane.traffic.usage.models import DailyReport, MeteredRow
from tests.factories import (
    AlertRuleFactory,
    CountedUsageFactory,
    DeniedRequestFactory,
    DestinationFactory,
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    ModelPriceFactory,
    OverrideFactory,
    PolicyDraftFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
)


@dataclass(frozen=True)
class Tenant:
    """A project with its rows by the name of their model, as in the names of addresses."""

    project: Project
    rows: dict[str, Model]

    def member(self, role: str) -> User:
        return MembershipFactory(project=self.project, role=role).user


def tenant(name: str) -> Tenant:
    project = ProjectFactory(slug=name, name=name.capitalize())
    policy = PolicyFactory(slug=f"{name}--plan", name=f"{name} plan", project=project)
    limit = LimitFactory(policy=policy, name=f"{name}-limit")
    project.policy = policy
    project.save()
    token = TokenFactory(project=project, name=f"{name}-token", expires_at=timezone.now() + timedelta(days=1))
    now = timezone.now().replace(second=0, microsecond=0)
    of_token = {"project_id": project.pk, "token_id": token.pk}
    usage = CountedUsageFactory(at=now, denied=77 if name == "bravo" else 5, **of_token)
    UsageRowFactory(at=now, denied=7, policy_id=policy.pk, limit_name=limit.name, **of_token)
    denial = DeniedRequestFactory(attributes={"path": f"/{name}"}, instance=f"{name}-host-1", **of_token)
    metered = MeteredRow.objects.create(period="hour", at=now, model=f"{name}-model", requests=3, **of_token)
    lost = Reservation.objects.create(
        id=f"{project.pk}.{name.encode().hex():0>32}",
        at=now,
        expires_at=now,
        state=LOST,
        model=f"{name}-model",
        instance=f"{name}-host-1",
        **of_token,
    )
    with change(actor=Actor(f"{name}-actor", "admin"), reason=f"{name}-reason") as tx:
        tx.updated(token, {**token.as_record(), "name": f"{name}-before"})
    month = MonthRow.objects.create(month=now.date().replace(day=1), unit="requests", allowed=77, **of_token)
    value = Suspension.objects.create(within=project, name="session", value=f"{name}-session", by=f"{name}-actor")
    job = run.start("test", f"Change {name}", projects=[project], created_by=f"{name}-actor", channel="admin")
    rows = [project, policy, limit, token, usage, denial, metered, lost, month, value, job]
    rows += alerted(project, name)
    rows += [PolicyDraftFactory(policy=policy, limits=[limit], saved_by=f"{name}-actor")]
    rows += [OverrideFactory(limit=limit, token=token, reason=f"{name}-override")]
    rows += [ManagementKeyFactory(projects=[project], name=f"{name}-key")]
    rows += [MembershipFactory(project=project, user__username=f"{name}-member", role="viewer")]
    rows += [rows[-1].user, AuditEntry.objects.get(change=tx.id)]
    return Tenant(project, {f"{row._meta.app_label}_{row._meta.model_name}": row for row in rows})


def alerted(project: Project, name: str) -> list[Model]:
    """Return a webhook of the project, a rule that tells it, one event, and the message about it."""
    webhook = DestinationFactory(project=project, name=f"{name}-webhook", url=f"https://{name}.example/hook")
    rule = AlertRuleFactory(project=project, name=f"{name}-rule", told=[webhook])
    (event,) = decide(rule, Found([AlertFinding("s", f"{name}-title", project=project.pk)]), timezone.now())
    return [webhook, rule, event, Delivery.objects.get(message_id=event.pk)]


def installation() -> dict[str, Model]:
    """Return rows that belong to no project, by the name of their model."""
    rows: list[Any] = [
        Revision.objects.create(number=1, by="bravo-actor", changes={"documents": {}}),
        Revision.objects.create(number=2, by="bravo-actor", changes={"documents": {}}),
        OutboxEntry.objects.create(kind="token", object_id="bravo-digest", by="bravo-actor"),
        Instance.objects.create(pk="bravo-host-1", host="bravo-host", state="ok", seen_at=timezone.now()),
        DailyReport.objects.create(day=timezone.now().date(), summary={}, html="bravo", csv="bravo"),
        AccessAttempt.objects.create(username="bravo-member", ip_address="192.0.2.1", failures_since_start=1),
        ModelPriceFactory(pattern="shared-model"),
    ]
    # The first revision, since only a past one can be rolled back to.
    return {f"{row._meta.app_label}_{row._meta.model_name}": row for row in reversed(rows)}
