"""Every dialog and panel of filters of the admin in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from tests.controlplane.access.addresses import address, patterns, row_of
from tests.controlplane.adminkit.story import ZONE, told
from tests.controlplane.conftest import PASSWORD
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]

DIALOGS = {
    "projects_token_change": ["Reset counters", "Suspend", "Rotate", "Revoke"],
    "projects_project_change": ["Reset counters", "Suspend"],
    "projects_managementkey_change": ["Revoke"],
    "policies_policy_change": ["Copy"],
    "publishing_revision_change": ["Roll back to this revision"],
    "auth_user_change": ["Reset second factor"],
}


@pytest.mark.browser_context_args(timezone_id=ZONE)
def test_every_dialog_and_panel_is_sound(walker, store, settings):
    """Opened from its page, and the filters of each list."""
    settings.ENVIRONMENT_NAME = "production"
    page, look = walker.page, scale(walker.glance, walker.look)
    with told(store.url) as story:
        walker.log_in("ann", PASSWORD)
        for pattern in patterns():
            url = address(pattern, row_of(pattern, story.rows))
            for title in DIALOGS.get(pattern.name, []):
                walker.open(url)
                page.get_by_role("link", name=title, exact=True).click()
                expect(page.get_by_role("dialog")).to_be_visible()
                look(f"{pattern.name}-{title.split()[0].lower()}")
            if pattern.name.endswith("_changelist"):
                walker.open(url)
                filters = page.get_by_role("button", name=re.compile("^Filters"))
                if filters.count():
                    filters.first.click()
                    look(f"{pattern.name}-filters")
