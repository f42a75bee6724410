"""Tests with and without a browser in one process. Each of these tests comes after the one above it."""

import asyncio

from playwright.sync_api import Page

from tests.docs.conftest import browser_type_launch_args

__all__ = ["browser_type_launch_args"]


def test_a_page_is_opened(page: Page) -> None:
    """From here on, Playwright's loop is in this thread."""
    page.set_content("<h1>first</h1>")

    assert page.inner_text("h1") == "first"
    assert asyncio._get_running_loop() is not None


def test_a_loop_is_started_after_a_browser() -> None:
    """It would be refused beside a loop that runs."""
    assert asyncio.run(asyncio.sleep(0, "slept")) == "slept"


async def test_a_coroutine_is_run_after_a_browser() -> None:
    """The loop of the test is another one."""
    assert await asyncio.wait_for(asyncio.sleep(0, "slept"), 1) == "slept"


def test_the_browser_goes_on(page: Page) -> None:
    """Also the one whose loop stood still meanwhile."""
    page.set_content("<h1>second</h1>")

    assert page.inner_text("h1") == "second"


def test_the_run_ends_without_a_browser() -> None:
    """The browser is closed all the same."""
    assert asyncio._get_running_loop() is None
