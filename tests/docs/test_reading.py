"""The pages below /docs/ in a browser: by eye, by keyboard, on a small screen."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from controlplane import docs
from tests.accessibility import OF_COLOURS, graves
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module", params=docs.SLUGS)
def opened(request: pytest.FixtureRequest, live_server: LiveServer, browser: Browser) -> Iterator[Page]:
    """One page, opened once for all its tests; what its browser asked other hosts for is in ``elsewhere``."""
    page = browser.new_page()
    page.elsewhere, page.faults = [], []
    page.on(
        "request", lambda sent: page.elsewhere.append(sent.url) if not sent.url.startswith(live_server.url) else None
    )
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{live_server.url}{docs.page_url(request.param)}")
    yield page
    page.close()


def test_the_first_key_leads_to_the_text(opened):
    """Whoever reads by keyboard need not step through the list of pages each time."""
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")

    assert opened.evaluate("document.activeElement.id") == "text"


@pytest.mark.proof
@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", OF_COLOURS)], ids=["light", "dark"])
def test_nothing_keeps_anybody_from_reading(opened, scheme, rules):
    """Axe finds nothing critical or serious, by day and by night; nothing is asked of other hosts."""
    opened.emulate_media(color_scheme=scheme)

    assert [fault["id"] for fault in graves(opened, scale(rules, ()))] == []
    assert (opened.elsewhere, opened.faults) == ([], [])


def test_a_page_fits_a_small_screen(opened):
    """At 320 pixels only code and tables scroll, each by itself, never the page."""
    opened.set_viewport_size({"width": 320, "height": 640})

    assert opened.evaluate("document.documentElement.scrollWidth") <= 320
