"""A statement at a browser, in each width and light."""

import pytest

from tests.controlplane.traffic.reports.test_admin import PAGE, chat_with_usage  # noqa: F401  (the fixture)
from tests.controlplane.web.kit.walking import Walker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]


def test_somebody_reads_and_prints_a_statement(walker: Walker, chat_with_usage):  # noqa: F811  (the fixtures)
    """The page and the one to print fit a narrow screen, and are read by a screen reader."""
    walker.enter("ann")
    walker.open(f"{PAGE}?month=2026-11")
    walker.page.get_by_role("link", name="chat", exact=True).click()
    walker.page.get_by_label("Group by").select_option("label")
    walker.page.get_by_label("Label, such as team").fill("team")
    walker.press("Show")
    walker.reads("By team")
    walker.look("statement")
    walker.page.get_by_role("link", name="Page to print").click()
    walker.reads("Statement of chat")
    walker.look("statement-print")
