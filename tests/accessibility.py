"""Axe in a page that is open: what keeps people from reading or using it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

GRAVE = ("critical", "serious")
OF_COLOURS = ("color-contrast", "link-in-text-block")
"""The rules that a page can break in one light and keep in another."""

_SCRIPT = Axe().axe_script
# Only violations are returned: to hand over what passed takes longer than to find it.
_RUN = """async rules => {
    const options = {resultTypes: ['violations'], ...(rules.length ? {runOnly: rules} : {})};
    return (await axe.run(options)).violations;
}"""


def graves(page: Page, rules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the critical and serious violations of some rules, or of all if none are named."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(_SCRIPT)
    return [violation for violation in page.evaluate(_RUN, list(rules)) if violation["impact"] in GRAVE]
