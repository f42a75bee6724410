"""Colours that nobody can read are found, also where most of a page is alike."""

import pytest
from playwright.sync_api import Browser, Page

from tests.accessibility import OF_COLOURS, graves
from tests.docs.conftest import browser_type_launch_args

__all__ = ["browser_type_launch_args"]


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    """One page for all tests, each of which fills it anew."""
    return browser.new_page()


PAGE = """<!doctype html><html lang="en"><title>Rows</title><style>
body { color: black; background: white } .pale { color: #ddd } .striped tr:nth-child(even) { color: #ddd }
.ended tr:last-child { color: #ddd } [aria-current=page] { color: #ddd } [data-late] { color: #ddd }
</style><main><h1>Rows</h1><table class="%s"><tbody>%s</tbody></table></main></html>"""
ROW = "<tr><td><span>row</span></td></tr>"


@pytest.mark.parametrize("rules", [(), OF_COLOURS], ids=["all rules", "colours"])
@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("pale", ROW),
        ("striped", ROW),
        ("ended", ROW),
        ("", ROW.replace("<span", "<span class=pale")),
        ("", ROW.replace("<span", "<span style='color: #ddd'")),
        ("", ROW.replace("<tr", "<tr aria-current=page")),
        ("", ROW.replace("<td", "<td data-late=1")),
        ("", ROW.replace("<span>row</span>", "<b class=pale>row</b>")),
    ],
)
def test_a_pale_text_is_found_below_rows_that_are_alike(page: Page, table: str, row: str, rules) -> None:
    """Whether one row is pale, or every second one, the last one or all of them."""
    page.set_content(PAGE % (table, 6 * ROW + row))

    assert [violation["id"] for violation in graves(page, rules)] == ["color-contrast"]


def test_what_is_alike_is_judged_by_all_other_rules(page: Page) -> None:
    """The control: a picture without a text in the last of several rows, and nothing in a sound page."""
    page.set_content(PAGE % ("", 6 * ROW))
    assert graves(page) == []
    page.set_content(
        PAGE % ("", 6 * "<tr><td><img src='data:,' alt=''></td></tr>" + "<tr><td><img src='data:,'></td></tr>")
    )

    assert [violation["id"] for violation in graves(page)] == ["image-alt"]
    assert graves(page, without=["image-alt"]) == []


def test_a_word_is_judged_below_single_letters(page: Page) -> None:
    """Axe says nothing of the colours of a letter, so a letter cannot stand for a word."""
    letter = ROW.replace("row", "1")
    page.set_content(PAGE % ("pale", 4 * letter + ROW + letter))

    assert [violation["id"] for violation in graves(page)] == ["color-contrast"]


@pytest.mark.parametrize("second", ["<b class=pale>row</b>", "<b>row</b><i class=pale>row</i>", "<u><b>row</b></u>"])
def test_what_another_page_has_too_is_judged_once(page: Page, second: str) -> None:
    """What is new on the second page is judged: another class, another element, or other elements around it."""
    known: set[int] = set()
    style = "<style>body { color: black; background: white } .pale, u > b { color: #ddd }</style>"
    head = f"<!doctype html><html lang=en><title>Words</title>{style}<main><h1>Words</h1>"
    found = []
    for body in ("<b>row</b>", second, second):
        page.set_content(f"{head}<p>{body}</p></main>")
        found.append([violation["id"] for violation in graves(page, known=known)])

    assert found == [[], ["color-contrast"], []]


def test_what_was_hidden_on_another_page_is_judged(page: Page) -> None:
    known: set[int] = set()
    for rule, violations in (("p { display: none }", []), ("", ["color-contrast"])):
        style = f"<style>body {{ color: black; background: white }} b {{ color: #ddd }} {rule}</style>"
        page.set_content(
            f"<!doctype html><html lang=en><title>Words</title>{style}<main><h1>Words</h1><p><b>row</b></p>"
        )
        assert [violation["id"] for violation in graves(page, known=known)] == violations
