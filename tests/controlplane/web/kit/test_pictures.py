"""
The pages that answer the questions of operators, and the pictures of them in README.md and in the documentation.

``python -m tests.pictures`` runs this test with the folder to which it writes the pictures.
"""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.controlplane.conftest import PASSWORD
from tests.controlplane.web.kit.story import ZONE, Story, played
from tests.controlplane.web.kit.walking import Walker
from tests.scale import scale

FOLDER = os.environ.get("SLUICEGATE_PICTURES", "")
pytestmark = [
    pytest.mark.skipif(scale(not FOLDER, False), reason="test_tasks.py reads the same pages"),
    pytest.mark.django_db(transaction=True),
    pytest.mark.proof,
    pytest.mark.browser_context_args(timezone_id=ZONE),
]
SIZE = {"width": 1280, "height": 960}


def picture(walker: Walker, name: str, height: int = SIZE["height"]) -> None:
    """Judge the page, and write its upper part as a picture."""
    walker.glance(name)
    if FOLDER:
        walker.page.set_viewport_size(SIZE | {"height": height})
        shot = Image.open(io.BytesIO(walker.page.screenshot(clip={"x": 0, "y": 0, **SIZE, "height": height})))
        shot.convert("RGB").save(Path(FOLDER) / f"{name}.png", optimize=True)


def test_the_pages_that_answer_questions(walker: Walker, store, settings):
    """Each is as its picture in the documentation says."""
    settings.ENVIRONMENT_NAME = "production"
    with played(store.url) as story:
        walker.log_in("ann", PASSWORD)
        what_needs_a_hand(walker)
        why_it_was_denied(walker, story)
        who_is_next(walker)
        what_holds_for_a_token(walker, story)
        what_a_change_will_do(walker, story)
        what_changed(walker)
        who_used_what(walker)


def what_needs_a_hand(walker: Walker) -> None:
    walker.open("/admin/?range=24h")
    walker.reads("are lost")
    walker.reads("kestrel-desk")
    picture(walker, "admin", 1180)


def why_it_was_denied(walker: Walker, story: Story) -> None:
    walker.open(f"/admin/explain/?decision={story.decision}")
    walker.reads("kestrel-desk had used up 25 requests per minute of chat-free / per-minute.")
    walker.reads("An override gives it 60 until")
    picture(walker, "admin-explain", 1180)


def who_is_next(walker: Walker) -> None:
    walker.open("/admin/near-limit/")
    walker.reads("36.71 USD of 40.00 USD")


def what_holds_for_a_token(walker: Walker, story: Story) -> None:
    walker.open(f"/admin/projects/token/{story.tokens['kestrel-desk'].pk}/change/")
    walker.reads("36.71 USD of 40.00 USD (91 %)")
    picture(walker, "admin-token", 900)


def what_a_change_will_do(walker: Walker, story: Story) -> None:
    walker.open(f"/admin/policies/policy/{story.policies['chat-free'].pk}/change/")
    walker.limit("per-minute").click()
    walker.page.locator("#id_limits-0-quota").fill("10")
    walker.press("Save policy")
    walker.reads("chat-free gets tighter: 25 becomes 10 (per-minute)")
    walker.reads("would have been limited")
    picture(walker, "admin-review", 1180)


def what_changed(walker: Walker) -> None:
    walker.open("/admin/publishing/revision/")
    walker.reads("3 of 3 instances have it")
    picture(walker, "admin-revisions", 1000)


def who_used_what(walker: Walker) -> None:
    walker.open("/admin/statements/monthrow/?project=chat&group=label&label=team")
    walker.reads("By team")
    picture(walker, "admin-statement", 1000)
