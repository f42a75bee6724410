"""
The pages that answer the questions of operators, and the pictures of them in README.md and in the documentation.

``python -m tests.pictures`` runs these tests with the folder to which they write the pictures.
"""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.controlplane.adminkit.conftest import PASSWORD
from tests.controlplane.adminkit.story import ZONE, Story, told
from tests.controlplane.adminkit.walking import Walker

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.proof,
    pytest.mark.browser_context_args(timezone_id=ZONE),
]
FOLDER = os.environ.get("SLUICEGATE_PICTURES", "")
SIZE = {"width": 1280, "height": 960}


def picture(walker: Walker, name: str, height: int = SIZE["height"]) -> None:
    """Judge the page, and write its upper part as a picture."""
    walker.glance(name)
    if FOLDER:
        walker.page.set_viewport_size(SIZE | {"height": height})
        shot = Image.open(io.BytesIO(walker.page.screenshot(clip={"x": 0, "y": 0, **SIZE, "height": height})))
        shot.convert("RGB").save(Path(FOLDER) / f"{name}.png", optimize=True)


@pytest.fixture
def story(walker: Walker, store, settings):
    settings.ENVIRONMENT_NAME = "production"
    with told(store.url) as story:
        walker.log_in("ann", PASSWORD)
        yield story


def test_the_overview_says_what_needs_a_hand(walker: Walker, story: Story):
    """Lost instances first, then the decisions of a day and who is near a limit."""
    walker.open("/admin/?range=24h")
    walker.reads("2 lost in the last hour")
    walker.reads("kestrel-desk")
    picture(walker, "admin", 1180)


def test_a_denial_is_explained(walker: Walker, story: Story):
    """Who was denied, by which limit, and until when an override gives more."""
    walker.open(f"/admin/explain/?decision={story.decision}")
    walker.reads("kestrel-desk had used up 25 requests per minute of chat-free / per-minute.")
    walker.reads("An override gives it 60 until")
    picture(walker, "admin-explain", 1180)


def test_who_is_near_a_limit(walker: Walker, story: Story):
    """Those who run out first come first."""
    walker.open("/admin/near-limit/")
    walker.reads("36.71 USD of 40.00 USD")
    picture(walker, "admin-near", 700)


def test_a_token_has_its_limits(walker: Walker, story: Story):
    """Which quota holds, from where and until when, and what is left."""
    walker.open(f"/admin/projects/token/{story.tokens['kestrel-desk'].pk}/change/")
    walker.reads("36.71 USD of 40.00 USD (91 %)")
    picture(walker, "admin-token", 1180)


def test_a_change_is_reviewed_before_it_is_live(walker: Walker, story: Story):
    """What would have been denied in the last 24 hours, and who would see that."""
    walker.open(f"/admin/policies/policy/{story.policies['chat-free'].pk}/change/")
    walker.page.locator("#id_limits-0-quota").fill("10")
    walker.press("Save")
    walker.reads("chat-free gets tighter: 25 becomes 10 (per-minute)")
    picture(walker, "admin-review", 1180)


def test_revisions_say_what_changed(walker: Walker, story: Story):
    """In words, with a button that undoes it."""
    walker.open("/admin/publishing/revision/")
    walker.reads("3 of 3")
    picture(walker, "admin-revisions", 1000)


def test_a_statement_says_who_used_what(walker: Walker, story: Story):
    """By month and team, in requests and money."""
    walker.open("/admin/statements/monthrow/?project=chat&group=label&label=team")
    walker.reads("By team")
    picture(walker, "admin-statement", 1000)
