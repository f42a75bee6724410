"""The pages of this room in a real browser, in both lights and on a narrow screen."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.core.periods import start_of
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.traffic.usage.drain import drain
from tests.controlplane.operations.explain.conftest import ANN
from tests.factories import UsageRowFactory
from tests.scale import scale

pytestmark = [
    pytest.mark.skipif(scale(True, False), reason="test_tasks.py asks the same questions"),
    pytest.mark.django_db(transaction=True),
    pytest.mark.proof,
]


def test_a_denial_is_explained_in_the_browser(walker, denied):
    """From the sample of denials to the answer that is sent, with an override since."""
    limit = denied.policy.limits.get(name="per-day")
    with change(actor=ANN, reason="load test") as tx:
        ends_at = timezone.now() + timedelta(days=2)
        save_override(tx, Override(limit=limit, token=denied.token, quota=60, reason="load test", ends_at=ends_at))
    walker.enter("ann")

    walker.open("/admin/usage/deniedrequest/")
    walker.page.get_by_role("link", name=denied.decision).click()
    walker.reads("kestrel had used up 2 requests per day of free / per-day.")
    walker.reads("An override gives it 60 until")
    walker.look("explained")
    walker.page.get_by_text("No decision id? Ask by token and time").click()
    walker.page.get_by_label("Token").fill(denied.secret)
    walker.press("Explain the token")
    walker.reads("kestrel")
    assert denied.secret not in walker.page.content()
    walker.look("by-token")


def test_who_is_near_a_limit_is_found_in_the_browser(walker, issue, start_limiter):
    """From the Overview to the token, whose limits and last hours say more."""
    token, secret = issue(
        {"name": "per-day", "quota": 10}, {"name": "wide", "quota": 1_000}, {"name": "tried", "mode": "shadow"}
    )
    with start_limiter() as enforcer:
        for _ in range(11):
            enforcer.check(secret)
    drain(timezone.now())
    hour = start_of("hour", timezone.now())
    ids = {"project_id": token.project_id, "token_id": token.pk, "period": "hour"}
    for back in range(1, 20):
        counts = {"allowed": 10 * back, "denied": back % 4, "would_deny": back % 3}
        UsageRowFactory(at=hour - timedelta(hours=back), **ids, **counts)
    walker.enter("ann")

    walker.open("/admin/")
    walker.reads("Near a limit")
    walker.look("overview", elsewhere=True)
    walker.open("/admin/near-limit/")
    walker.look("near", elsewhere=True)
    walker.page.get_by_role("link", name="kestrel").first.click()
    walker.reads("enforced")
    walker.reads("Last 24 hours")
    walker.look("token", elsewhere=True)
    walker.open("/admin/projects/token/?near=yes")
    walker.look("tokens", elsewhere=True)
