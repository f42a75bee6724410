"""
Every page, dialog and panel of filters of the admin in a real browser, for each role.

The addresses come from the URL configuration.
"""

import re

import pytest
from django.contrib.auth.models import User
from django.template import Template
from django.test.signals import template_rendered
from django.urls import URLPattern
from playwright.sync_api import expect

from tests.controlplane.access.addresses import address, patterns, row_of
from tests.controlplane.access.test_matrix import EXPECTED, ROLES
from tests.controlplane.adminkit.story import ZONE, played
from tests.controlplane.conftest import PASSWORD
from tests.factories import UserFactory
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]

# Files to save, and answers for scripts. What opens in a dialog is opened from its page.
NO_PAGES = ("csv", "jsonl", "jsi18n", "counters", "search", "state", "progress", "history")
NAMES = {"viewer": "ines", "editor": "jonas", "owner": "priya", "operator": "ann", "staff": "visitor"}
DIALOGS = {
    "projects_token_change": ["Reset counters", "Suspend", "Rotate", "Revoke"],
    "projects_project_change": ["Reset counters", "Suspend"],
    "projects_managementkey_change": ["Revoke"],
    "policies_policy_change": ["Copy"],
    "publishing_revision_change": ["Roll back to this revision"],
    "auth_user_change": ["Reset second factor"],
}


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


# What the theme and Django's forms make pages of. A filter is a part of it that scripts work on.
PARTS = re.compile("django/forms/|/helpers/|/widgets/|/components/")


class Templates:
    """Notes which templates the server renders. In a small run, a page of which each was on another is not opened."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.new: set[str] = set()

    def __enter__(self) -> "Templates":
        template_rendered.connect(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        template_rendered.disconnect(self._note)

    def _note(self, sender: Template, **_: object) -> None:
        if sender.name and sender.name not in self.seen and not PARTS.search(sender.name):
            self.seen.add(sender.name)
            self.new.add(sender.name)

    def are_new(self) -> bool:
        """Return whether any were new since the last call."""
        found, self.new = bool(self.new), set()
        return scale(found, True)


@pytest.mark.browser_context_args(timezone_id=ZONE)
def test_every_page_is_sound_for_each_role(walker, store, settings):
    """A page of one screen width, without a fault, a request to elsewhere or a column that is too narrow."""
    settings.ENVIRONMENT_NAME = "production"
    with played(store.url) as story, Templates() as templates:
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
                if answer.ok and "<html" in answer.text() and templates.are_new():
                    walker.open(url)
                    scale(walker.glance, walker.look)(f"{role}-{pattern.name}")
                    if pattern.name.endswith("_changelist"):
                        look_at_filters(walker, f"{role}-{pattern.name}")
        look_at_dialogs(walker, story)


def look_at_filters(walker, name: str) -> None:
    filters = walker.page.get_by_role("button", name=re.compile("^Filters"))
    if filters.count():
        filters.first.click()
        scale(walker.glance, walker.look)(f"{name}-filters")


def look_at_dialogs(walker, story) -> None:
    """Open each from its page, in a small run one of those with the same title."""
    seen = set()
    for pattern in patterns():
        for title in DIALOGS.get(pattern.name, []):
            if scale(title in seen, False):
                continue
            seen.add(title)
            walker.open(address(pattern, row_of(pattern, story.rows)))
            walker.page.get_by_role("link", name=title, exact=True).click()
            expect(walker.page.get_by_role("dialog")).to_be_visible()
            scale(walker.glance, walker.look)(f"{pattern.name}-{title.split()[0].lower()}")
