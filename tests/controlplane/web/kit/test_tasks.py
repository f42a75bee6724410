"""
The tasks of an operator's day in a real browser, each with the clicks that it takes from the Overview or from a list.

What is typed or pasted does not count. A select counts as one, because it is used by keyboard too.
"""

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Locator

from controlplane.objects.emergency.models import Suspension
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Token
from tests.controlplane.web.kit.story import ZONE, Story, friday, played
from tests.controlplane.web.kit.walking import Walker
from tests.factories import UserFactory

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.proof,
    pytest.mark.browser_context_args(timezone_id=ZONE),
]


class Operator:
    """Somebody who works with the admin and counts clicks."""

    def __init__(self, walker: Walker, story: Story) -> None:
        self.walker, self.page, self.story, self.clicks = walker, walker.page, story, 0

    def start(self, path: str = "/admin/") -> None:
        self.walker.open(path)
        self.clicks = 0

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def press(self, name: str) -> None:
        self.click(self.page.get_by_role("button", name=name, exact=True))

    def follow(self, name: str) -> None:
        self.click(self.page.get_by_role("link", name=name, exact=True).first)

    def choose(self, label: str, value: str) -> None:
        self.page.get_by_label(label).select_option(value)
        self.clicks += 1

    def token_page(self, name: str) -> str:
        return f"/admin/projects/token/{self.story.tokens[name].pk}/change/"


def test_each_task_of_a_day_can_be_done(walker: Walker, store, settings):
    """None needs a shell, a spreadsheet, or an address that one has to know."""
    settings.ENVIRONMENT_NAME = "production"
    with played(store.url) as story:
        UserFactory(username="newcomer")
        walker.enter("ann")
        operator = Operator(walker, story)
        found = {}
        for task in TASKS:
            task(operator)
            found[task.__name__] = operator.clicks

    assert found == {
        "see_why_it_was_denied": 2,
        "see_who_is_near_a_limit": 0,
        "see_which_instances_run_the_newest_revision": 0,
        "raise_a_quota_until_friday": 3,
        "find_one_token": 0,
        "see_who_changed_what": 1,
        "undo_a_change": 3,
        "tighten_in_shadow": 3,
        "revoke_a_leaked_token": 2,
        "suspend_until_friday": 3,
        "rotate_a_token": 3,
        "reset_a_counter": 2,
        "account_for_a_month": 3,
        "give_read_only_access": 5,
        "revoke_many_tokens": 4,
    }


def see_why_it_was_denied(operator: Operator) -> None:
    operator.start()
    operator.follow("Explain a denial")
    operator.page.get_by_label("Decision id").fill(operator.story.decision)
    operator.press("Explain")
    operator.walker.reads("kestrel-desk had used up 25 requests per minute of chat-free / per-minute.")
    operator.walker.reads("An override gives it 60 until")


def see_who_is_near_a_limit(operator: Operator) -> None:
    operator.start()
    operator.walker.reads("Near a limit")
    operator.walker.reads("36.71 USD of 40.00 USD")


def see_which_instances_run_the_newest_revision(operator: Operator) -> None:
    operator.start()
    operator.walker.reads("3 of 3 run revision")
    operator.walker.reads("are lost")


def raise_a_quota_until_friday(operator: Operator) -> None:
    operator.start(operator.token_page("halden-web"))
    operator.follow("Raise a limit")
    # The limit nearest to its quota is chosen already.
    operator.page.get_by_label("New quota").fill("60")
    operator.click(operator.page.get_by_label(re.compile("^Friday|^Fri")))
    operator.page.get_by_label("Reason").fill("SUP-4472")
    operator.press("Raise the limit")
    operator.walker.reads("Published as revision")
    override = Override.objects.get(token=operator.story.tokens["halden-web"])
    assert (override.limit.name, override.quota) == ("per-minute", 60)
    assert override.ends_at == friday(timezone.now())


def find_one_token(operator: Operator) -> None:
    operator.start()
    operator.page.keyboard.press("Control+k")
    operator.page.locator("#search-input-command").fill("osprey")
    operator.page.keyboard.press("Control")  # the palette searches once a key goes up
    operator.page.locator("#command-results a", has_text="osprey-tiles").wait_for()
    operator.page.keyboard.press("Enter")
    operator.page.wait_for_url("**/projects/token/**")


def see_who_changed_what(operator: Operator) -> None:
    operator.start(f"/admin/policies/policy/{operator.story.policies['chat-free'].pk}/change/")
    operator.follow("History")
    operator.walker.reads("20 requests per minute")
    operator.walker.reads("support asked")


def undo_a_change(operator: Operator) -> None:
    operator.start()
    operator.follow("Revisions")
    operator.click(operator.page.locator("tr", has_text="support asked").get_by_role("link", name="Undo"))
    operator.page.get_by_label("Reason").fill("INC-88")
    operator.click(operator.page.get_by_role("button", name=re.compile("^Undo revision")))
    operator.walker.reads("is undone.")
    assert Limit.objects.get(policy__slug="chat-free", name="per-minute").quota == 20


def tighten_in_shadow(operator: Operator) -> None:
    operator.start(f"/admin/policies/policy/{operator.story.policies['chat-free'].pk}/change/")
    operator.click(operator.walker.limit("per-minute"))
    operator.page.locator("#id_limits-0-quota").fill("10")
    operator.press("Save policy")
    operator.walker.reads("would have been limited")
    operator.page.get_by_label("Reason").fill("Cost of the free plan")
    operator.press("Start in shadow")
    operator.walker.reads("was changed successfully.")
    assert Limit.objects.get(name="per-minute.candidate").mode == "shadow"


def revoke_a_leaked_token(operator: Operator) -> None:
    operator.start()
    operator.page.keyboard.press("Control+k")
    operator.page.locator("#search-input-command").fill(operator.story.secrets["norrsken-cms"])
    operator.page.keyboard.press("Control")
    operator.page.wait_for_url("**/projects/token/**")
    operator.follow("Revoke")
    operator.page.locator("#dialog input[name=reason]").fill("leaked in a log")
    operator.press("Revoke token")
    operator.walker.reads("is revoked. Published as revision")


def suspend_until_friday(operator: Operator) -> None:
    operator.start(operator.token_page("fjordline-batch"))
    operator.follow("Suspend")
    operator.choose("Ends", "friday")
    operator.page.locator("#dialog input[name=reason]").fill("INC-91")
    operator.press("Suspend")
    operator.walker.reads("Suspended until")
    assert Suspension.objects.get(token=operator.story.tokens["fjordline-batch"]).ends_at == friday(timezone.now())


def rotate_a_token(operator: Operator) -> None:
    operator.start(operator.token_page("dunmore-pos"))
    operator.follow("Rotate")
    operator.click(operator.page.get_by_label("One hour"))
    operator.page.locator("#dialog input[name=reason]").fill("quarterly")
    operator.press("Create the new secret")
    operator.walker.reads("stays valid until")
    operator.page.get_by_label("I have stored the secret").check()


def reset_a_counter(operator: Operator) -> None:
    operator.start(operator.token_page("kestrel-desk"))
    operator.walker.reads("36.71 USD of 40.00 USD (91 %)")
    operator.follow("Reset counters")
    operator.page.locator("#dialog input[name=reason]").fill("support call")
    operator.press("Reset counters")
    operator.walker.reads("of kestrel-desk")
    operator.walker.reads("0.00 USD of 40.00 USD (0 %)")


def account_for_a_month(operator: Operator) -> None:
    operator.start()
    operator.follow("Statements")
    operator.follow("chat")
    operator.walker.reads("By token")
    with operator.page.expect_download() as saved:
        operator.follow("CSV")
    text = saved.value.path().read_text()
    assert "kestrel-desk" in text


def give_read_only_access(operator: Operator) -> None:
    operator.start()
    operator.follow("People")
    operator.follow("Add a member")
    operator.page.get_by_label("Person").fill("newcomer")
    operator.walker.choose("Project", "chat")
    operator.clicks += 2
    operator.press("Add membership")
    operator.walker.reads("newcomer")
    member = Membership.objects.get(user=User.objects.get(username="newcomer"))
    assert (member.project.slug, member.role) == ("chat", "viewer")


def revoke_many_tokens(operator: Operator) -> None:
    """As many as a project with a leak has, of which a page shows a few."""
    owner = operator.story.projects["mobile"]
    ends = timezone.now() + timedelta(days=9)
    leaked = [
        Token(project=owner, name=f"leak-{n}", digest=f"{n:064x}", prefix="sg_live_", expires_at=ends)
        for n in range(300)
    ]
    Token.objects.bulk_create(leaked)
    operator.start("/admin/projects/token/?q=leak-")
    operator.click(operator.page.locator("#action-toggle"))
    operator.click(operator.page.get_by_role("link", name=re.compile("^Select all 300")))
    operator.page.locator("select[name=action]").select_option("revoke_selected")
    operator.press("Apply")
    operator.walker.reads("300 tokens")
    operator.page.get_by_label("Reason").last.fill("a leak")
    operator.click(operator.page.get_by_role("button", name=re.compile("^Revoke")))
    operator.walker.reads("300 tokens revoked. Published as revision")
    assert not Token.objects.filter(name__startswith="leak-", revoked_at=None).exists()


TASKS = [
    see_why_it_was_denied,
    see_who_is_near_a_limit,
    see_which_instances_run_the_newest_revision,
    raise_a_quota_until_friday,
    find_one_token,
    see_who_changed_what,
    undo_a_change,
    tighten_in_shadow,
    revoke_a_leaked_token,
    suspend_until_friday,
    rotate_a_token,
    reset_a_counter,
    account_for_a_month,
    give_read_only_access,
    revoke_many_tokens,
]
