"""An emergency at a browser, in each width and light."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.emergency.actions import break_glass
from controlplane.objects.emergency.models import BreakGlass
from controlplane.operations.jobs import run
from tests.controlplane.web.kit.walking import Walker
from tests.factories import TokenFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


IS_ON_TOP = """element => {
    const box = element.getBoundingClientRect();
    return element.contains(document.elementFromPoint(box.left + 1, box.top + box.height / 2));
}"""


def uncovered(page: Page) -> bool:
    """Return whether the first word of the banner is seen, which a browser also calls visible under the menu."""
    return page.locator(".sg-banner strong").evaluate(IS_ON_TOP)


def test_nobody_overlooks_the_banner(walker: Walker):
    """Neither beside the menu, which is shown on wide screens only, nor without it."""
    with change(actor=Actor("ann", "admin"), reason="wrong limits") as tx:
        break_glass(tx, timezone.now() + timedelta(hours=1))
    walker.enter("ann")
    walker.open("/admin/")
    for width in (1920, 1280, 1279, 320):
        walker.page.set_viewport_size({"width": width, "height": 720})
        assert uncovered(walker.page), width
    walker.reads("No limit is enforced until")
    expect(walker.page.get_by_text("All is well")).to_have_count(0)


@pytest.mark.proof
@pytest.mark.skipif(scale(True, False), reason="test_admin.py and test_tasks.py do the same")
def test_somebody_suspends_a_token_and_breaks_the_glass(walker: Walker):
    """The banner is on each page until the glass is mended. The progress of a job is shown under it."""
    token, page = TokenFactory(name="ci"), walker.page
    walker.enter("ann")
    walker.open(f"/admin/projects/token/{token.pk}/change/")
    page.get_by_role("link", name="Suspend").or_(page.get_by_role("button", name="Suspend")).first.click()
    page.get_by_role("dialog").get_by_label("Ends").select_option("hour")
    page.get_by_role("dialog").get_by_label("Reason").fill("leaked?")
    page.get_by_role("button", name="Suspend").last.click()
    expect(page.get_by_text("is suspended until")).to_be_visible()

    walker.open("/admin/emergency/suspension/")
    page.get_by_label("Ends", exact=True).last.select_option("3600")
    page.get_by_label("Reason").last.fill("The limit of the checkout service is wrong")
    walker.look("emergency")
    walker.press("Stop enforcing every limit")
    expect(page.get_by_text("No limit is enforced.")).to_be_visible()
    assert uncovered(page)
    walker.look("emergency-broken-glass")
    job = run.start(
        "test",
        "Revoke 1,950 tokens of 5 projects",
        user=User.objects.get(),
        created_by="ann",
        channel="admin",
        total=1_950,
        done=1_000,
        state="running",
        reason="A leak",
    )
    walker.open(f"/admin/jobs/job/{job.pk}/change/")
    expect(page.get_by_text("No limit is enforced.")).to_be_visible()
    walker.look("job")
    walker.press("Cancel this job")
    expect(page.get_by_text("The job is cancelled.")).to_be_visible()

    walker.open("/admin/emergency/suspension/")
    walker.press("Enforce every limit again")
    expect(page.get_by_text("No limit is enforced.")).to_have_count(0)
    assert BreakGlass.present() is None
