"""The pages below /docs/ in a browser: by eye, by keyboard, on a small screen."""

import functools
from collections.abc import Iterator

import pytest
from django.test import RequestFactory
from playwright.sync_api import Browser, Page
from pytest_django.live_server_helper import LiveServer

from controlplane import docs
from tests.accessibility import OF_COLOURS, graves
from tests.docs.elements import Elements, few_with_all
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module", params=docs.SLUGS)
def slug(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def opened(slug: str, live_server: LiveServer, browser: Browser) -> Iterator[Page]:
    """One page, opened once for all its tests; what its browser asked other hosts for is in ``elsewhere``."""
    page = browser.new_page()
    page.elsewhere, page.faults = [], []
    page.on(
        "request", lambda sent: page.elsewhere.append(sent.url) if not sent.url.startswith(live_server.url) else None
    )
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{live_server.url}{docs.page_url(slug)}")
    yield page
    page.close()


def test_the_first_key_leads_to_the_text(opened):
    """Whoever reads by keyboard need not step through the list of pages each time."""
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")

    assert opened.evaluate("document.activeElement.id") == "text"


@functools.cache
def coloured() -> list[str]:
    """Return the pages whose colours are judged. An element has the same colours on every page."""
    request = RequestFactory().get("/docs/")
    pages = {slug: Elements(docs.page(request, slug).content.decode()).found for slug in docs.SLUGS}
    return scale(few_with_all(pages), list(docs.SLUGS))


@pytest.mark.proof
def test_nothing_keeps_anybody_from_reading(opened, slug):
    """Axe finds nothing critical or serious, by day and by night; nothing is asked of other hosts."""
    opened.emulate_media(color_scheme="light")
    found = graves(opened, without=() if slug in coloured() else OF_COLOURS)
    if slug in coloured():
        opened.emulate_media(color_scheme="dark")
        found += graves(opened, scale(OF_COLOURS, ()))

    assert [fault["id"] for fault in found] == []
    assert (opened.elsewhere, opened.faults) == ([], [])


def test_a_page_fits_a_small_screen(opened):
    """At 320 pixels only code and tables scroll, each by itself, never the page."""
    opened.set_viewport_size({"width": 320, "height": 640})

    assert opened.evaluate("document.documentElement.scrollWidth") <= 320
