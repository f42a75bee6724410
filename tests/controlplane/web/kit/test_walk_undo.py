"""A walk from a bad change to its undo, by the keyboard where that is shorter."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.actions import issue_token
from controlplane.releases.publishing import acknowledgements
from controlplane.traffic.fleet.models import Instance
from tests.factories import LimitFactory, OverrideFactory, TokenFactory
from tests.scale import scale

pytestmark = [
    pytest.mark.skipif(scale(True, False), reason="test_tasks.py undoes a change, too"),
    pytest.mark.django_db(transaction=True),
    pytest.mark.proof,
]

ANN = Actor("ann", "admin")


@pytest.fixture
def history(store):
    """Two changes of a policy with tokens in between, and two instances, one of which is behind."""
    limit = LimitFactory(policy__slug="chat-free", name="per-minute", quota=20)
    token = TokenFactory(name="web", policy=limit.policy)
    override = OverrideFactory(limit=limit, token=token, ends_at=timezone.now() + timedelta(days=2))
    with change(actor=ANN) as tx:
        tx.created(limit.policy)
    with change(actor=ANN, reason="load test, SUP-4471") as tx:
        tx.created(override)
    for quota in (25, 2):
        before = limit.policy.as_record()
        with change(actor=ANN) as tx:
            limit.policy.limits.update(quota=quota)
            tx.updated(type(limit.policy).objects.get(pk=limit.policy_id), before)
        for name in ("app", "tool"):
            with change(actor=ANN) as tx:
                issue_token(tx, project=token.project, name=name)
    now = timezone.now()
    times = {"state": "ok", "seen_at": now, "started_at": now - timedelta(days=1)}
    Instance.objects.create(pk="eu-fra-1", revision=99, revision_at=now, **times)
    Instance.objects.create(pk="ap-sin-1", revision=6, revision_at=now, **times)
    acknowledgements.note(now)
    return limit


def test_from_a_bad_change_to_its_undo(walker, history):
    """Who is behind, what changed, what the undo would do, and that it is done."""
    walker.enter("ann")
    walker.open("/admin/publishing/revision/")
    walker.reads("chat-free")
    walker.look("revisions", elsewhere=True)

    walker.page.get_by_role("link", name="Undo revision 6").click()
    walker.reads("This changes")
    walker.look("undo")
    walker.page.get_by_label("Reason").fill("INC-88: too tight")
    walker.press("Undo revision 6")

    walker.reads("Revision 6 is undone. Published as revision")
    walker.reads("undone by 9")
    assert Limit.objects.get().quota == 25
