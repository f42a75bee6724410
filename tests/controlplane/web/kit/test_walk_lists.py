"""A walk over the lists in one project, and from a form to a draft and its publication."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.core.periods import start_of
from controlplane.objects.policies.models import Limit
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup
from tests.controlplane.web.kit.walking import Walker
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop(store):
    """A project with a policy that denies, and tokens that need a hand, beside another one."""
    shop, bar = ProjectFactory(slug="shop"), ProjectFactory(slug="bar")
    limit = LimitFactory(policy__slug="shop-chat", policy__project=shop, name="per-minute", quota=20)
    LimitFactory(policy=limit.policy, name="tried", mode="shadow")
    PolicyFactory(slug="bar-quiet", project=bar)
    now = timezone.now()
    names = (shop.pk, "tok_1", limit.policy.pk, "per-minute", "requests")
    rows = [Row(start_of("minute", now), names, (1_200, 90, 7, 1_200))]
    rollup.add(rows, now)
    TokenFactory(name="web", project=shop, policy=limit.policy, labels={"owner": "ann"})
    TokenFactory(name="old", project=shop, created_at=now - timedelta(days=120), expires_at=now + timedelta(days=3))
    TokenFactory(name="other", project=bar)
    return shop


def test_a_walk_in_one_project(walker, shop):
    """Chosen once, it narrows each list, and its address says so."""
    walker.enter("ann")
    walker.open("/admin/policies/policy/")
    walker.reads("1,200 allowed, 90 denied, 7 would deny")
    walker.look("policies", elsewhere=True)

    walker.page.locator(".sg-switch summary").click()
    walker.look("switcher-open")
    walker.page.locator(".sg-switch").get_by_role("button", name="shop", exact=True).click()
    walker.page.wait_for_url("**/policies/policy/?project__id__exact=*")
    assert "bar-quiet" not in walker.page.locator("#result_list").inner_text()

    walker.page.get_by_role("link", name="Tokens").click()
    walker.page.wait_for_url("**/projects/token/?project__id__exact=*")
    walker.reads("Not used for 90 days")
    assert "other" not in walker.page.locator("#result_list").inner_text()
    walker.look("tokens", elsewhere=True)

    walker.page.get_by_role("link", name="Not used for 90 days 1").click()
    walker.page.wait_for_url("**hygiene=unused**")
    assert walker.page.locator("#result_list tbody tr").count() == 1
    walker.page.get_by_role("link", name="Usage", exact=False).first.click()
    walker.page.wait_for_url("**/usage/usagerow/?project_id=*")
    walker.open("/admin/choose-project/?q=ba")
    walker.look("choose", elsewhere=True)


def save_as_draft(walker: Walker) -> Limit:
    limit = Limit.objects.get(name="per-minute")
    walker.enter("ann")
    walker.open(f"/admin/policies/policy/{limit.policy.pk}/change/")
    walker.limit("per-minute").click()
    walker.page.locator("[name$=-quota]").first.fill("5")
    walker.press("Save as draft")
    walker.reads("Nothing is published.")
    return limit


def test_from_a_form_to_a_draft(walker, shop):
    """Nothing is limited by it."""
    limit = save_as_draft(walker)
    walker.look("draft")
    limit.refresh_from_db()
    assert (limit.quota, PolicyDraft.objects.get().content["limits"][0]["quota"]) == (20, 5)


@pytest.mark.proof
@pytest.mark.skipif(scale(True, False), reason="drafts/test_pages.py edits and publishes drafts, too")
def test_from_a_draft_to_its_publication(walker, shop):
    """Nothing is limited by it until its review is confirmed."""
    limit = save_as_draft(walker)
    walker.page.get_by_role("link", name="Edit", exact=False).first.click()
    walker.reads("This is a draft.")
    walker.look("draft-form", elsewhere=True)
    walker.limit("per-minute").click()
    with walker.page.expect_request("**/admin/policies/policy/advice/"):
        walker.page.locator("[name$=-quota]").first.fill("6")
    assert PolicyDraft.objects.get().content["limits"][0]["quota"] == 5  # it is saved by the button alone
    walker.press("Save draft")
    walker.reads("Nothing is published.")

    walker.page.get_by_role("link", name="Review and publish", exact=False).first.click()
    walker.reads("shop-chat gets tighter: 20 becomes 6 (per-minute)")
    walker.look("draft-review", elsewhere=True)
    walker.page.get_by_label("Enforce now").check()
    walker.page.get_by_label("Reason").fill("launch")
    walker.press("Enforce now")
    walker.reads("shop-chat is as its draft was.")
    limit.refresh_from_db()
    assert (limit.quota, PolicyDraft.objects.get().state) == (6, "published")
    walker.open("/admin/drafts/policydraft/?state=all")
    walker.look("drafts", elsewhere=True)
