"""Parts of the pages in a real browser: dialogs, live counters, searches and filters, in both lights."""

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from controlplane.changes.change.transaction import Actor, change
from controlplane.core.periods import start_of
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import publisher
from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from tests.controlplane.web.kit.walking import Walker
from tests.factories import CountedUsageFactory, LimitFactory, ManagementKeyFactory, TokenFactory, UsageRowFactory
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]


@pytest.fixture
def inside(walker):
    walker.enter("ann")
    return walker


def test_a_dialog_says_what_it_is_and_takes_the_focus(inside):
    """Opened by keyboard it is named, modal and entered; an error takes the focus; closed, the focus is back."""
    token = TokenFactory()
    inside.open(f"/admin/projects/token/{token.pk}/change/")
    button, reason = inside.page.get_by_role("link", name="Revoke"), inside.page.locator("#dialog input[name=reason]")
    button.press("Enter")

    dialog = inside.page.get_by_role("dialog", name="Revoke this token")
    expect(dialog).to_be_visible()
    expect(dialog).to_have_attribute("aria-modal", "true")
    expect(reason).to_be_focused()
    assert not inside.graves()
    inside.press("Revoke token")
    expect(reason).to_have_attribute("aria-invalid", "true")
    expect(reason).to_be_focused()
    inside.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()


def test_live_counters_say_when_and_why_they_stop(inside, store):
    """They go on by themselves once they can. The last numbers stay, with their time, and so does the focus."""
    token = TokenFactory(policy=LimitFactory(name="per-hour", quota=2, policy__slug="starter").policy)
    publisher.publish_all()
    inside.open(f"/admin/projects/token/{token.pk}/change/")
    inside.reads("0 of 2 requests (0 %)")
    notice = inside.page.locator("[data-notice]")
    a_new_number_leaves_the_focus(inside, token, store)

    inside.page.route("**/counters/", lambda route: route.abort())
    expect(notice).to_contain_text("The server does not answer, so the counters stopped at")
    inside.page.unroute("**/counters/")
    expect(notice).to_be_hidden()
    assert all("counters/" in fault for fault in inside.faults)
    inside.faults.clear()

    inside.press("Pause updates")
    expect(notice).to_contain_text("You paused the updates, so the counters stopped at")
    inside.press("Resume updates")
    expect(notice).to_be_hidden()

    # A server that takes a request and says nothing would leave old numbers that look like present ones.
    inside.page.evaluate("window.timeout = AbortSignal.timeout; AbortSignal.timeout = () => AbortSignal.abort()")
    expect(notice).to_contain_text("The server does not answer, so the counters stopped at")
    inside.page.evaluate("AbortSignal.timeout = window.timeout")
    expect(notice).to_be_hidden()

    inside.page.context.clear_cookies()
    expect(inside.page.get_by_role("alert")).to_contain_text("You are signed out, so the counters stopped at")
    expect(notice).to_contain_text("UTC")
    assert not inside.graves()
    notice.get_by_role("link", name="Sign in again").click()
    inside.page.wait_for_url("**/admin/login/?next=**")


def a_new_number_leaves_the_focus(inside: Walker, token: Token, store: ValkeyServer) -> None:
    """Every two seconds the keyboard would begin at the top again."""
    link = inside.page.locator("[data-rows] a").first
    link.focus()
    with Limiter(store.url) as limiter:
        assert limiter.check(token.secret).allowed

    inside.reads("1 of 2 requests (50 %)")
    expect(link).to_be_focused()


def test_the_palette_opens_the_dialog_of_a_row(inside, store):
    """A verb and a name, Enter, and the dialog asks. A reload does not open it again."""
    token = TokenFactory(name="web")
    inside.open("/admin/")
    inside.page.keyboard.press("Control+k")
    expect(inside.page.locator("#search-input-command")).to_be_focused()
    inside.page.keyboard.insert_text("revoke web")
    inside.page.keyboard.press("Control")  # the palette searches once a key goes up
    expect(inside.page.locator("#command-results")).to_contain_text("Revoke: web")
    inside.page.keyboard.press("Enter")

    expect(inside.page.locator("#dialog")).to_contain_text("Revoke this token")
    assert inside.page.url.endswith("/change/")
    assert Token.objects.get(pk=token.pk).is_live


@pytest.mark.browser_context_args(timezone_id="Europe/Berlin")
def test_a_filter_by_time_does_not_warn(inside):
    """The theme's has a red triangle in each empty box, for a browser with another time zone."""
    UsageRowFactory(period="hour", at=timezone.now())
    for address in ("policies/auditentry/?channel=api", "usage/meteredrow/", "usage/usagerow/"):
        inside.open(f"/admin/{address}")
        inside.page.get_by_role("button", name="Filters").first.click()
        expect(inside.page.get_by_label("From", exact=True)).to_be_visible()
        expect(inside.page.locator(".timezonewarning")).to_have_count(0)
    inside.look("filters", elsewhere=True)

    inside.page.get_by_label("From", exact=True).fill("2026-11-25T10:00")
    inside.page.get_by_role("button", name="Apply filters").click()
    inside.page.wait_for_url("**at_from=2026-11-25T10%3A00**")


def test_a_pasted_secret_finds_its_owner_and_is_in_no_address(inside):
    """Not in that of a page, a request, or the page that a request came from."""
    page, addresses = inside.page, []
    page.on("request", lambda request: addresses.append(f"{request.url} {request.headers.get('referer')}"))
    inside.open("/admin/projects/token/")
    for row in (TokenFactory(name="leaked"), ManagementKeyFactory(name="leaked")):
        if isinstance(row, Token):
            page.locator("#searchbar").fill(row.secret)
            page.keyboard.press("Enter")
        else:
            page.keyboard.press("Control+k")
            page.locator("#search-input-command").fill(row.secret)
            page.keyboard.press("Control")  # the palette searches once a key goes up

        page.wait_for_url(f"**/{row._meta.model_name}/{row.pk.replace('_', '_5F')}/change/")
        inside.reads("leaked")
        inside.reads(f"{row.prefix}…")
        assert not [address for address in addresses if row.secret[12:] in address]


def test_pages_of_many_rows_and_of_no_rows_are_sound(inside, store):
    """The chart with its third colour, a revision with its changes, the confirmations, and an outage."""
    limit, now = LimitFactory(policy__slug="free", name="per-day"), timezone.now()
    tokens = [TokenFactory(name=f"t{number}", policy=limit.policy) for number in range(25)]
    publisher.publish_all()
    with change(actor=Actor("ann", "admin"), reason="launch") as tx:
        save_override(tx, Override(limit=limit, token=tokens[0], quota=500, reason="launch"))
    for minute, counts in enumerate([{"allowed": 60, "would_deny": 30}, {"allowed": 20, "denied": 15}]):
        CountedUsageFactory(at=start_of("minute", now) - timedelta(minutes=minute), **counts)

    inside.open("/admin/")
    inside.reads("Allowed, a shadow limit would deny")
    expect(inside.page.get_by_role("img", name="of which 30 would be denied by shadow limits")).to_be_visible()
    inside.look("would-deny")
    if scale(False, True):  # test_every_page.py opens such a page
        inside.open("/admin/publishing/revision/2/change/")
        inside.reads("override free/per-day for t0")
        assert not inside.graves()
    for action in scale(["delete_selected"], ["revoke_selected", "delete_selected"]):
        inside.open("/admin/projects/token/")
        inside.page.locator("#action-toggle").check()
        inside.page.locator("select[name=action]").select_option(action)
        inside.press("Apply")
        inside.reads("and 5 more")
        assert not inside.graves()
    store.freeze()
    inside.open("/admin/")
    inside.reads("The store does not answer")
    assert not inside.graves()
    store.thaw()
