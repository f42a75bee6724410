import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Token
from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory


@pytest.fixture
def token(transactional_db: None, store: ValkeyServer) -> Token:
    """A published token that may make two requests a day. Its secret is its attribute ``secret``."""
    policy = LimitFactory(policy=PolicyFactory(slug="free"), quota=2, window_seconds=86_400).policy
    with change(actor=Actor("ann", "api")) as tx:
        project = ProjectFactory(slug="chat")
        tx.created(policy)
        tx.created(project)
        tx.touch("global")
        token, token.secret = issue_token(tx, project=project, name="ci", policy=policy)
    return token


@pytest.fixture
def act() -> Callable[..., Any]:
    """``act(action, *args, reason="why")``: the action inside a change of ann."""

    def run(action: Callable[..., Any], *args: Any, reason: str = "an incident", **fields: Any) -> Any:
        with change(actor=Actor("ann", "admin"), reason=reason) as tx:
            return action(tx, *args, **fields)

    return run


def follows(limiter: Limiter, expected: str, secret: str, **attributes: str) -> bool:
    """Return whether a proxy gives this reason within a second, which is what an operator is promised."""
    deadline = timezone.now() + timedelta(seconds=1)
    while (found := limiter.check(secret, costs=0, attributes=attributes).reason) != expected:
        if timezone.now() > deadline:
            pytest.fail(f"The reason is {found} after a second.")
        time.sleep(0.01)
    return True
