"""A change of a policy, from its form over the review to the verdict, in a browser."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.policies.models import Limit, Policy
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, TokenFactory, UsageRowFactory


@pytest.mark.django_db(transaction=True)
def test_a_change_is_reviewed_started_in_shadow_and_enforced(walker, sent):
    """The button says what it does, and each page is right in both lights and on a narrow screen."""
    policy = PolicyFactory(slug="chat-free")
    limit = LimitFactory(policy=policy, name="per-minute", quota=25, algorithm="sliding_window")
    LimitFactory(policy=policy, name="per-day", quota=5000, calendar="day", window_seconds=None)
    tokens = [TokenFactory(policy=policy, name=f"caller-{number}") for number in range(12)]
    for number, token in enumerate(tokens[:-2]):
        for ago in (30, 200, 400):
            sent(token, 3 * number + 1, minutes_ago=ago, part=number % 6, now=timezone.now())
    OverrideFactory(limit=limit, token=tokens[9], quota=60)
    walker.enter("ann")
    walker.open(f"/admin/policies/policy/{policy.pk}/change/")
    walker.limit("per-minute").click()
    walker.page.locator("#id_limits-0-quota").fill("10")
    walker.press("Save policy")

    walker.reads("chat-free gets tighter: 25 becomes 10 (per-minute)")
    walker.look("review")
    with walker.page.expect_download() as file:
        walker.page.get_by_role("button", name="All as CSV").click()
    assert file.value.suggested_filename == "chat-free-affected.csv"
    walker.page.get_by_role("button", name="Use 17").click()
    walker.reads("25 becomes 17")
    walker.page.get_by_label("Enforce now").check()
    walker.page.get_by_role("button", name="Enforce now").last.wait_for()
    walker.page.get_by_label("Shadow first").check()
    walker.page.get_by_label("Reason").fill("Cost of the free plan")
    walker.page.locator("#sgp-go", has_text="Start in shadow").click()
    walker.reads("was changed successfully.")
    assert Limit.objects.get(name="per-minute.candidate").quota == 17

    Policy.objects.update(created_at=timezone.now() - timedelta(days=3))
    walker.open(f"/admin/policies/policy/{policy.pk}/change/")
    walker.reads("no data, because no request matched it.")
    UsageRowFactory(at=timezone.now(), policy_id=policy.pk, limit_name="per-minute.candidate", would_deny=1)
    walker.open(f"/admin/policies/policy/{policy.pk}/change/")
    walker.reads("Too early")
    walker.page.locator(".sgp details").evaluate_all("all => all.forEach(one => one.open = true)")
    walker.look("verdict")
    walker.page.get_by_role("link", name="Enforce 17 requests").click()
    walker.reads("What shadow saw:")
