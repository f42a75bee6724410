"""The pages of this room in a real browser, in both lights and on a narrow screen."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.policies.actions import save_override
from controlplane.policies.models import Override
from controlplane.publishing.changes import change
from tests.controlplane.adminkit.conftest import PASSWORD, browser_type_launch_args, walker
from tests.controlplane.explain.conftest import ANN

__all__ = ["browser_type_launch_args", "walker"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]


def test_a_denial_is_explained_in_the_browser(walker, denied):
    """From the sample of denials to the answer that is sent, with an override since."""
    limit = denied.policy.limits.get(name="per-day")
    with change(actor=ANN, reason="load test") as tx:
        ends_at = timezone.now() + timedelta(days=2)
        save_override(tx, Override(limit=limit, token=denied.token, quota=60, reason="load test", ends_at=ends_at))
    walker.log_in("ann", PASSWORD)

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
