"""The pages of tokens, projects and policies show effective limits and the last 24 hours."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.core.periods import start_of
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain.day import HEIGHT, Hour, bars_of, day_of
from controlplane.operations.explain.question import Reach
from controlplane.traffic.usage.drain import drain
from controlplane.web.kit.site import change_url
from controlplane.web.pages.counters import notes_of, row_of
from enforcement.store_calls.inspection import LiveCounter
from tests.controlplane.operations.explain.conftest import ANN
from tests.factories import LimitFactory, PolicyFactory, TokenFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def busy_token(issue, start_limiter):
    """A token with an override, whose limits are used to 10, 80 and 0 per cent. The last is a shadow."""
    token, secret = issue(
        {"name": "wide", "quota": 100}, {"name": "tight", "quota": 10}, {"name": "tried", "mode": "shadow", "unit": "x"}
    )
    with change(actor=ANN) as tx:
        ends_at = timezone.now() + timedelta(days=2)
        wide = token.policy.limits.get(name="wide")
        save_override(tx, Override(limit=wide, token=token, quota=80, reason="x", ends_at=ends_at))
    with start_limiter() as enforcer:
        assert all(enforcer.check(secret, costs={"requests": 1, "x": 0}).allowed for _ in range(8))
    return token


def test_effective_limits_say_used_left_source_and_kind(busy_token, admin_client):
    """The one near its limit is first, then those of the token in their order."""
    page = admin_client.get(f"/admin/projects/token/{busy_token.pk}/counters/").content.decode()

    names = [part.split('"')[0] for part in page.split('data-name="')[1:]]
    assert names == ["free/tight", "free/wide", "free/tried"]
    assert "8 of 10 requests (80 %)" in page
    assert "8 of 80 requests (10 %)" in page
    assert "policy says 100" in page
    assert "enforced" in page
    assert "shadow, counts only" in page
    assert f'href="{change_url(busy_token.policy)}"' in page


def test_the_page_begins_with_what_denies_now_and_until_when(issue, start_limiter, admin_client):
    """In a sentence above the table, which the page updates with it."""
    token, secret = issue({"name": "tight", "quota": 8})
    page = f"/admin/projects/token/{token.pk}/counters/"
    assert "tight denies" not in admin_client.get(page).content.decode()
    with start_limiter() as enforcer:
        assert all(enforcer.check(secret).allowed for _ in range(8))

    shown = admin_client.get(page).content.decode()

    assert "<strong>free / tight denies until 20" in shown
    assert "</strong> 8 of 8 requests are used. It has room again in " in shown


AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
END, DENIES, USED = "2026-11-25 14:01 UTC", "free / a-day denies", "9 of 9 requests are used."
FULL = LiveCounter("free", "a-day", "token", "fixed_window", "requests", "enforce", 9, (), 9, 0, 7_260_000, None, 0)


@pytest.mark.parametrize(
    ("counter", "said"),
    [
        (
            FULL,
            f"{DENIES} until {END}. {USED} It has room again in 2 h 1 min.",
        ),
        (
            replace(FULL, reset_ms=7_258_100),
            f"{DENIES} until {END}. {USED} It has room again in 2 h.",
        ),
        (
            replace(FULL, algorithm="token_bucket"),
            f"{DENIES} now. {USED} Room comes back little by little, all of it in 2 h 1 min.",
        ),
        (replace(FULL, reset_ms=None), f"{DENIES} now. {USED} It never resets."),
        (replace(FULL, quota=0, used=0), f"{DENIES} now. Its quota is 0."),
        (
            replace(FULL, used=8, remaining=1),
            f"free / a-day is 88 % used. 1 of 9 requests are left until {END}, which is in 2 h 1 min.",
        ),
        (replace(FULL, used=8, remaining=1, reset_ms=60_000), ""),
        (replace(FULL, used=5, remaining=4), ""),
        (replace(FULL, mode="shadow"), ""),
        (replace(FULL, used=None, remaining=None, reset_ms=None), ""),
        (replace(FULL, scope="global"), ""),
    ],
)
def test_a_note_says_which_limit_denies_or_is_nearly_used_up(counter, said):
    """Never a shadow, nor what others have used of a limit of everybody."""
    notes = notes_of([row_of(counter)], AT, sees_all=False)

    assert " ".join(f"{note['lead']} {note['text']}" for note in notes) == said


def test_a_limit_of_the_project_says_who_shares_it(busy_token, admin_client):
    """With the number of live tokens."""
    team = LimitFactory(policy=PolicyFactory(slug="team"), name="team-day")
    Project.objects.filter(pk=busy_token.project_id).update(policy=team.policy)
    TokenFactory(project=busy_token.project, revoked=True)

    page = admin_client.get(f"/admin/projects/token/{busy_token.pk}/counters/").content.decode()

    assert "project chat, shared by 1 token" in page


def hour_rows(token):
    """Usage of two hours ago and of two days ago."""
    last = start_of("hour", timezone.now())
    ids = {"project_id": token.project_id, "token_id": token.pk, "period": "hour"}
    counts = {"allowed": 90, "denied": 10, "would_deny": 5}
    UsageRowFactory(at=last - timedelta(hours=2), **ids, **counts)
    UsageRowFactory(at=last - timedelta(hours=2), **ids, **counts, policy_id=token.policy_id, limit_name="per-day")
    UsageRowFactory(at=last - timedelta(days=2), **ids, allowed=7)


@pytest.mark.parametrize("model", ["token", "project", "policy"])
def test_pages_show_the_last_24_hours(admin_client, model):
    """As a picture with its numbers, a table, and a link to the usage."""
    policy = LimitFactory(policy=PolicyFactory(slug="free")).policy
    token = TokenFactory(policy=policy, project__slug="chat")
    hour_rows(token)
    app, row = {"token": ("projects", token), "project": ("projects", token.project), "policy": ("policies", policy)}[
        model
    ]

    page = admin_client.get(f"/admin/{app}/{model}/{row.pk}/change/").content.decode()

    assert "90 allowed and 10 denied in the last 24 hours." in page
    assert 'class="sgx-denied"' in page
    url = page.split("See usage")[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    assert admin_client.get(url).status_code == 200
    assert len(admin_client.get(url).context["cl"].result_list) in (1, 2)


def test_nothing_on_record_is_not_nothing_sent(admin_client):
    """It says so in words."""
    token = TokenFactory()

    assert "No decision is on record" in admin_client.get(f"/admin/projects/token/{token.pk}/change/").content.decode()


def test_a_member_sees_a_shared_policy_in_their_projects_only(client, django_user_model):
    """The sums of others are not in theirs."""
    policy = LimitFactory(policy=PolicyFactory(slug="free")).policy
    mine, others = TokenFactory(policy=policy), TokenFactory(policy=policy)
    hour_rows(others)
    reach = Reach(Project.objects.filter(pk=mine.project_id), Token.objects.filter(pk=mine.pk), False)

    assert day_of(policy, reach, timezone.now()).allowed == 0
    user = django_user_model.objects.create_user("vera", password="x", is_staff=True)
    Membership.objects.create(user=user, project=mine.project, role="viewer")
    client.force_login(user)
    assert "90 allowed" not in client.get(f"/admin/policies/policy/{policy.pk}/change/").content.decode()


def test_bars_fill_the_height_and_each_part_can_be_seen():
    """One denial of a thousand is a pixel, and a part that is 0 is none."""
    now = timezone.now()
    bars = bars_of((Hour(now, 999, 1, 0), Hour(now, 0, 0, 0), Hour(now, 500, 0, 500)))

    assert [(bar.kind, bar.height) for bar in bars] == [("allowed", 63.9), ("denied", 1.0), ("would", 32.0)]
    assert min(bar.y for bar in bars) == 0
    assert all(bar.y + bar.height <= HEIGHT + 1 for bar in bars)


@pytest.mark.parametrize("page", ["counters", "near"])
def test_a_share_is_rounded_down_everywhere(issue, start_limiter, admin_client, page):
    """Two pages about one counter show one number, and 100 % says that nothing is left."""
    token, secret = issue({"name": "tight", "quota": 1_000})
    with start_limiter() as enforcer:
        enforcer.check(secret, 918)
    drain(timezone.now())
    url = f"/admin/projects/token/{token.pk}/counters/" if page == "counters" else "/admin/near-limit/"

    assert "91 %" in admin_client.get(url).content.decode()


def test_the_hour_with_most_denials_has_its_number(admin_client):
    """Most of the denials may well be in the other hours."""
    token, last = TokenFactory(), start_of("hour", timezone.now())
    for back in (1, 2, 3):
        ids = {"project_id": token.project_id, "token_id": token.pk, "period": "hour"}
        UsageRowFactory(at=last - timedelta(hours=back), denied=10 + back, **ids)

    page = admin_client.get(change_url(token)).content.decode()

    assert re.search(r"36 denied, most in the hour from <time[^>]+>[^<]+</time>: 13\.", page)
