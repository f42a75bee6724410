"""The pages below /docs/ in a browser: by eye, by keyboard, on a small screen."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from controlplane import docs

AXE = Axe()


@pytest.fixture(params=docs.SLUGS)
def opened(request, transactional_db, live_server, page):
    """One page, open; what its browser asked other hosts for is in ``elsewhere``."""
    page.elsewhere, page.faults = [], []
    page.on(
        "request", lambda sent: page.elsewhere.append(sent.url) if not sent.url.startswith(live_server.url) else None
    )
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.goto(f"{live_server.url}{docs.page_url(request.param)}")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anybody_from_reading(opened, scheme):
    """Axe finds nothing critical or serious, by day and by night; nothing is asked of other hosts."""
    opened.emulate_media(color_scheme=scheme)

    found = AXE.run(opened).response["violations"]

    assert [fault["id"] for fault in found if fault["impact"] in ("critical", "serious")] == []
    assert (opened.elsewhere, opened.faults) == ([], [])


def test_a_page_fits_a_small_screen(opened):
    """At 320 pixels only code and tables scroll, each by itself, never the page."""
    opened.set_viewport_size({"width": 320, "height": 640})

    assert opened.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_first_key_leads_to_the_text(opened):
    """Whoever reads by keyboard need not step through the list of pages each time."""
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")

    assert opened.evaluate("document.activeElement.id") == "text"
