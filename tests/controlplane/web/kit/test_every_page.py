"""
Every page, dialog and panel of filters of the admin in a real browser, for each role.

The addresses come from the URL configuration.
"""

import re
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern
from playwright.sync_api import expect

from tests.controlplane.markup import Markup
from tests.controlplane.objects.people.addresses import address, patterns, row_of
from tests.controlplane.objects.people.test_matrix import EXPECTED, ROLES
from tests.controlplane.web.kit.story import ZONE, Story, played
from tests.controlplane.web.kit.walking import LIGHTS
from tests.docs.elements import few_with_all
from tests.factories import UserFactory
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]

# Files to save, and answers for scripts. What opens in a dialog is opened from its page.
NO_PAGES = ("csv", "jsonl", "jsi18n", "counters", "search", "state", "progress", "history", "needs-a-hand")
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


def asked(story: Story) -> Iterator[tuple[str, str, str, str]]:
    """Yield role, name, address and HTML of each page. What all projects share may be refused."""
    for role in ROLES:
        client = Client(raise_request_exception=False)
        client.force_login(User.objects.get(username=NAMES[role]))
        for pattern in pages_of(role):
            url = address(pattern, row_of(pattern, story.rows))
            answer = client.get(url)
            if answer.status_code == 200 and "text/html" in answer["Content-Type"]:
                yield role, pattern.name, url, answer.content.decode()


@pytest.mark.browser_context_args(timezone_id=ZONE)
def test_every_page_is_sound_for_each_role(walker, store, settings):
    """
    A page of one screen width, without a fault, a request to elsewhere or a column that is too narrow.

    In a small run, the HTML of each is read, and few are opened that have every class and script.
    """
    settings.ENVIRONMENT_NAME = "production"
    with played(store.url) as story:
        UserFactory(username=NAMES["staff"])
        found = {(role, name, url): Markup(html) for role, name, url, html in asked(story)}
        walker.faults += [f"{role} at {url}: {it}" for (role, _, url), page in found.items() for it in page.faults]
        whole = {key: page.kinds for key, page in found.items() if page.whole}
        of, filtered = "", False
        seen: dict[str, set[object]] = {light: set() for light in LIGHTS}
        for role, name, url in sorted(scale(few_with_all(whole), list(whole)), key=lambda key: ROLES.index(key[0])):
            if role != of:
                walker.page.context.clear_cookies()
                walker.enter(NAMES[role])
                of = role
            walker.open(url)
            kinds = whole[role, name, url]
            light = min(seen, key=lambda light: len(kinds & seen[light]))  # what has been seen in the other one only
            seen[light] |= kinds
            walker.look(f"{role}-{name}", light=light)
            if name.endswith("_changelist") and not scale(filtered, False):
                filtered = look_at_filters(walker, f"{role}-{name}") or filtered
        look_at_dialogs(walker, story)


def look_at_filters(walker, name: str) -> bool:
    filters = walker.page.get_by_role("button", name=re.compile("^Filters"))
    if filters.count():
        filters.first.click()
        scale(walker.glance, walker.look)(f"{name}-filters")
        return True
    return False


def look_at_dialogs(walker, story) -> None:
    """Open each from its page, in a small run one of those with the same title, and judge the first."""
    seen = set()
    for pattern in patterns():
        for title in DIALOGS.get(pattern.name, []):
            if scale(title in seen, False):
                continue
            judged = scale(not seen, True)
            seen.add(title)
            walker.open(address(pattern, row_of(pattern, story.rows)))
            walker.page.get_by_role("link", name=title, exact=True).click()
            expect(walker.page.get_by_role("dialog")).to_be_visible()
            if judged:
                scale(walker.glance, walker.look)(f"{pattern.name}-{title.split()[0].lower()}")
