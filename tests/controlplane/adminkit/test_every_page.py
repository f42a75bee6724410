"""Every page of the admin in a real browser, for each role. The addresses come from the URL configuration."""

import pytest
from django.contrib.auth.models import User
from django.urls import URLPattern

from tests.controlplane.access.addresses import address, patterns, row_of
from tests.controlplane.access.test_matrix import EXPECTED, ROLES
from tests.controlplane.adminkit.story import ZONE, told
from tests.controlplane.conftest import PASSWORD
from tests.factories import UserFactory
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]

# Files to save, and answers for scripts. test_every_dialog.py opens what opens in a dialog.
NO_PAGES = ("csv", "jsonl", "jsi18n", "counters", "search", "state", "progress", "history")
NAMES = {"viewer": "ines", "editor": "jonas", "owner": "priya", "operator": "ann", "staff": "visitor"}


def pages_of(role: str) -> list[URLPattern]:
    """Return what this role may open and the role before it may not. In a full run, an operator opens everything."""
    before = "" if role in ("staff", scale("", "operator")) else ROLES[ROLES.index(role) - 1]
    return [
        pattern
        for pattern in patterns()
        if EXPECTED[pattern.name][role] == "200"
        and EXPECTED[pattern.name].get(before) != "200"
        and not pattern.name.endswith(NO_PAGES)
    ]


@pytest.mark.browser_context_args(timezone_id=ZONE)
def test_every_page_is_sound_for_each_role(walker, store, settings):
    """A page of one screen width, without a fault, a request to elsewhere or a column that is too narrow."""
    settings.ENVIRONMENT_NAME = "production"
    with told(store.url) as story:
        UserFactory(username=NAMES["staff"])
        for role in ROLES:
            user = User.objects.get(username=NAMES[role])
            user.set_password(PASSWORD)
            user.save()
            walker.page.context.clear_cookies()
            walker.log_in(user.username, PASSWORD)
            for pattern in pages_of(role):
                url = address(pattern, row_of(pattern, story.rows))
                answer = walker.page.request.get(walker.url + url)
                # The others are what a dialog shows, or the row is one that all projects share.
                if answer.ok and "<html" in answer.text():
                    walker.open(url)
                    scale(walker.glance, walker.look)(f"{role}-{pattern.name}")
