"""The pages below /docs/ in a browser: by eye, by keyboard, on a small screen."""

from collections.abc import Iterator
from functools import partial

import pytest
from django.test import RequestFactory
from playwright.sync_api import Browser, Page, Request
from pytest_django.live_server_helper import LiveServer

from controlplane.web.site import docs
from tests.accessibility import OF_COLOURS, graves
from tests.docs.elements import Elements, few_with_all
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


def chosen() -> list[str]:
    """Return pages that have every kind of element, which looks the same on every page; all of them for a proof."""
    request = RequestFactory().get("/docs/")
    pages = {slug: Elements(docs.page(request, slug).content.decode()).found for slug in docs.SLUGS}
    return scale(few_with_all(pages), list(docs.SLUGS))


@pytest.fixture(scope="module")
def opened(live_server: LiveServer, browser: Browser) -> Iterator[dict[str, Page]]:
    """Pages, opened once for all tests; what a browser asked other hosts for is in ``elsewhere``."""
    pages: dict[str, Page] = {}
    for slug in chosen():
        page = pages[slug] = browser.new_page()
        page.elsewhere, page.faults = [], []
        page.on("request", partial(_note, page, live_server.url))
        page.on("console", lambda said, page=page: page.faults.append(said.text) if said.type == "error" else None)
        page.goto(f"{live_server.url}{docs.page_url(slug)}")
    yield pages
    for page in pages.values():
        page.close()


def _note(page: Page, ours: str, sent: Request) -> None:
    if not sent.url.startswith(ours):
        page.elsewhere.append(sent.url)


@pytest.mark.proof
def test_the_first_key_leads_to_the_text(opened):
    """Whoever reads by keyboard need not step through the list of pages each time."""
    focused = {}
    for slug, page in opened.items():
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        focused[slug] = page.evaluate("document.activeElement.id")

    assert focused == dict.fromkeys(opened, "text")


@pytest.mark.proof
def test_nothing_keeps_anybody_from_reading(opened):
    """Axe finds nothing critical or serious, by day and by night; nothing is asked of other hosts."""
    found, known = {}, {"light": set(), "dark": set()}
    for slug, page in opened.items():
        faults = []
        for light, rules in (("light", ()), ("dark", scale(OF_COLOURS, ()))):
            page.emulate_media(color_scheme=light)
            faults += graves(page, rules, known=known[light])
        found[slug] = [fault["id"] for fault in faults], page.elsewhere, page.faults

    assert found == {slug: ([], [], []) for slug in opened}


@pytest.mark.proof
def test_a_page_fits_a_small_screen(opened):
    """At 320 pixels only code and tables scroll, each by itself, never the page."""
    widths = {}
    for slug, page in opened.items():
        page.set_viewport_size({"width": 320, "height": 640})
        widths[slug] = page.evaluate("document.documentElement.scrollWidth")

    assert max(widths.values()) <= 320, widths
