from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.policies.actions import replace_limits
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Token
from controlplane.traffic.usage.drain import drain
from enforcement import Limiter
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory

ANN = Actor("ann", "admin", "req-1")


@dataclass
class Denied:
    """A token whose only request beyond its quota was denied, and the id of that decision."""

    token: Token
    secret: str
    decision: str

    @property
    def policy(self) -> Policy:
        return self.token.policy


def set_quota(policy: Policy, quota: int) -> int:
    """Change the quota of the first limit, as an operator does, and return the revision."""
    with change(actor=ANN) as tx:
        before = policy.as_record()
        values = [limit.as_value() for limit in policy.limits.all()]
        replace_limits(tx, policy, [policy.limits.first().as_value(quota=quota), *values[1:]])
        tx.updated(policy, before)
    return tx.revision


@pytest.fixture
def issue(store, transactional_db) -> Callable[..., tuple[Token, str]]:
    """Issue a published token under a published policy with these limits: ``issue({"quota": 2}, slug="free")``."""

    def make(*limits: dict[str, Any], slug: str = "free", project: str = "chat", **fields: Any) -> tuple[Token, str]:
        policy = PolicyFactory(slug=slug)
        for limit in limits:
            LimitFactory(policy=policy, **{"window_seconds": 86_400, "name": "per-day", **limit})
        owner = ProjectFactory(slug=project)
        with change(actor=ANN) as tx:
            tx.created(policy)
            tx.created(owner)
            return issue_token(tx, project=owner, name="kestrel", policy=policy, **fields)

    return make


@pytest.fixture
def start_limiter(store) -> Callable[..., Limiter]:
    """All of its requests are in one minute, the present one or the one before."""
    at_us = int(timezone.now().timestamp()) // 60 * 60_000_000
    return lambda: Limiter(store.url, timeout=1.0, instance="proxy-1", clock=lambda: at_us)


@pytest.fixture
def denied(issue, start_limiter) -> Denied:
    """Two requests passed under a quota of 2 a day, and the third was denied. Its usage has arrived."""
    token, secret = issue({"quota": 2}, {"name": "per-ip", "quota": 50, "partition_by": ["ip"]})
    with start_limiter() as enforcer:
        decisions = [enforcer.check(secret, attributes={"ip": "10.0.0.1"}) for _ in range(3)]
    drain(timezone.now())
    assert [decision.allowed for decision in decisions] == [True, True, False]
    return Denied(token, secret, decisions[-1].id)


@pytest.fixture
def use(start_limiter):
    """Use a token so many times, and let the usage arrive."""

    def send(secret, times):
        with start_limiter() as enforcer:
            for _ in range(times):
                enforcer.check(secret)
        drain(timezone.now())

    return send
