"""The first steps in a browser, which turn green by themselves."""

import pytest
import redis
from django.utils import timezone
from playwright.sync_api import expect

from controlplane.traffic.usage.drain import drain
from enforcement import Limiter

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_first_decision_is_waited_for(walker, store):
    """A template, a token, a proxy that starts meanwhile, and a request: each step turns green without a reload."""
    walker.enter("ann")
    walker.open("/admin/")
    walker.page.get_by_role("link", name="Continue").click()
    walker.press("Create project")
    walker.press("Use Public API")
    walker.press("Create token")
    secret = walker.page.locator("#first-secret").inner_text()
    walker.page.get_by_role("tab", name="OpenAI SDK").click()
    expect(walker.page.locator("#code-openai")).to_contain_text(secret)
    walker.look("waiting")

    with Limiter(store.url, instance="proxy-1") as limiter:
        assert limiter.check(secret).allowed
        expect(walker.page.locator("[data-step=proxy]")).to_contain_text("proxy-1 reports")
    with redis.Redis.from_url(store.url, decode_responses=True, protocol=2) as client:
        drain(timezone.now(), client)

    walker.reads("The first decision arrived: 1 allowed and 0 denied")
    expect(walker.page.locator("[data-step].sg-ok")).to_have_count(5)
    walker.look("complete")
    walker.page.reload()
    assert secret not in walker.page.content()


def test_the_keyboard_opens_what_the_palette_finds(walker, store):
    """Ctrl K, a verb and a name, Enter; and the list of shortcuts, which takes the focus and closes with Esc."""
    walker.enter("ann")
    walker.open("/admin/")
    page = walker.page
    page.keyboard.press("Shift+?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    expect(page.get_by_role("button", name="Close", exact=True)).to_be_focused()
    assert not walker.graves()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_hidden()

    walker.open("/admin/")
    page.keyboard.press("Control+k")
    expect(page.locator("#search-input-command")).to_be_focused()
    page.keyboard.insert_text("add policy")
    page.keyboard.press("Control")  # the palette searches once a key goes up, and again if the next one comes late
    expect(page.locator("#command-results")).to_contain_text("Add policy")
    assert not walker.graves()
    page.keyboard.press("Enter")
    page.wait_for_url("**/policies/policy/add/")
