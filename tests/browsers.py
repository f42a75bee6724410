"""
A pytest plugin that lets tests with and without a browser follow each other in one process, in any order.

Playwright's event loop runs in the thread of the tests from the first test with a browser to the end of the run. A test
that starts a loop of its own would be refused. So Playwright's loop counts as running only while a test uses a browser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_hidden: list[asyncio.AbstractEventLoop] = []
"""Playwright's loop, during a test without a browser."""


def browses(item: pytest.Item) -> bool:
    """Return whether a test uses a browser."""
    return "browser" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if browses(item):
        _show()
    else:
        _hide()
    return (yield)


@pytest.fixture(scope="session")
def browser(browser: Browser) -> Iterator[Browser]:
    """Give Playwright's browser. It is closed after the last test, which may be one without a browser."""
    yield browser
    _show()


def _hide() -> None:
    if loop := asyncio._get_running_loop():
        _hidden.append(loop)
        asyncio._set_running_loop(None)


def _show() -> None:
    if _hidden:
        asyncio._set_running_loop(_hidden.pop())
