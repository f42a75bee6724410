"""What lists and forms say at a glance: shadow limits, overrides, tokens that were rotated, and usual scopes."""

import json
import re
import time
from datetime import date, timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.projects.actions import revoke_token, rotate_token
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.traffic.usage.models import DailyReport
from controlplane.web.kit.times import exact
from enforcement.model.keys import Keys
from tests.controlplane.pages import words
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db

POLICIES = "/admin/policies/policy/"


def cells(response, name: str) -> list[str]:
    """The texts of a column of a list."""
    page = re.sub(r"<span [^>]*aria-hidden[^>]*>[^<]*</span>", "", response.content.decode())
    found = re.findall(rf'<td class="field-{name}[^>]*>(.*?)</td>', page, flags=re.S)
    return [words(cell) for cell in found]


def test_a_shadow_limit_has_a_badge(as_ann):
    """The end of a sentence is overlooked."""
    policy = PolicyFactory(slug="free")
    LimitFactory(policy=policy, name="hard")
    LimitFactory(policy=policy, name="tried", mode="shadow")

    (limits,) = cells(as_ann.get(POLICIES), "limits_described")

    assert limits == "hard 100 requests per minute tried 100 requests per minute shadow"


@pytest.mark.parametrize(("mode", "slugs"), [("shadow", ["tried"]), ("enforce", ["hard"]), ("", ["hard", "tried"])])
def test_policies_are_filtered_by_the_mode_of_their_limits(as_ann, mode, slugs):
    """So those of which a verdict is due are found."""
    LimitFactory(policy__slug="hard")
    LimitFactory(policy__slug="tried", mode="shadow")

    page = as_ann.get(f"{POLICIES}?mode={mode}").content.decode()

    assert [slug for slug in ("hard", "tried") if f">{slug}</a>" in page] == slugs


def test_a_policy_counts_the_overrides_that_one_may_see(as_ann, client):
    """A member learns nothing of other projects, and the number leads to the overrides."""
    limit = LimitFactory(policy__slug="free")
    mine, _ = OverrideFactory(limit=limit), OverrideFactory(limit=limit)
    whole = as_ann.get(POLICIES)
    client.force_login(MembershipFactory(project=mine.token.project, role=EDITOR).user)

    assert cells(whole, "overridden") == ["2"]
    assert cells(client.get(POLICIES), "overridden") == ["1"]
    assert cells(client.get("/admin/policies/override/?q=free/"), "replaced") == ["500 instead of 100"]


def test_a_token_that_was_rotated_is_retiring(as_ann, store):
    """Of two rows of one name it is seen which stays."""
    token = TokenFactory(name="ci")
    with change(actor=Actor("ann", "admin"), reason="quarterly") as tx:
        rotate_token(tx, token, 3600)

    assert sorted(cells(as_ann.get("/admin/projects/token/"), "state")) == ["active", "retiring"]


def test_a_revoked_token_says_which_instances_still_admit_it(as_ann, client, store, client_of_store):
    """Whoever may not see the instances reads their number only. Before it is published, each of them does."""
    token = TokenFactory(name="leaked")
    url = f"/admin/projects/token/{token.pk}/change/"
    with change(actor=Actor("ann", "admin"), reason="leaked") as tx:
        revoke_token(tx, token)
    assert "Saved, and not published yet: every instance still admits this token." in text_of(as_ann.get(url))
    revision = Revision.objects.create(number=7, live_on=5, instances=5, lag_ms=360)
    PublishedChange.objects.update_or_create(change=tx.id, defaults={"revision": revision})
    beats(client_of_store, {"us-1": 7, "us-2": 6})
    viewer = MembershipFactory(project=token.project, role="viewer").user

    said = text_of(as_ann.get(url))
    beats(client_of_store, {"us-2": 7})
    later = text_of(as_ann.get(url))
    beats(client_of_store, {"us-2": 6})
    client.force_login(viewer)
    told = text_of(client.get(url))

    assert "1 of 2 instances have it; us-2 still admits this token. Published as revision 7." in said
    assert "All 2 instances have it. Published as revision 7, which the last of them had after 0.4 s." in later
    assert "1 of 2 instances have it; an operator sees which." in told
    assert "Every proxy" not in said + later + told


def text_of(response):
    return re.sub("<[^>]*>", "", response.content.decode())


def beats(client_of_store, instances):
    """Let instances report their revisions."""
    now_us = time.time_ns() // 1_000
    for name, revision in instances.items():
        beat = {"id": name, "revision": revision, "state": "ok", "started_at_us": now_us, "seen_at_us": now_us}
        client_of_store.set(Keys().instance(name), json.dumps(beat), px=15_000)
        client_of_store.zadd(Keys().instances, {name: now_us})


@pytest.mark.parametrize(
    ("preset", "scopes"),
    [
        ("issues tokens", ["policies:read", "projects:read", "tokens:issue", "tokens:read"]),
        ("", []),
        ("nope", []),
    ],
)
def test_a_preset_ticks_the_scopes_of_a_usual_program(as_ann, preset, scopes):
    """They can be changed before the key is made. A name that is none ticks nothing."""
    page = as_ann.get("/admin/projects/managementkey/add/", {"preset": preset}).content.decode()

    boxes = re.findall(r'<input[^>]*name="scopes"[^>]*>', page)
    ticked = [re.search('value="([^"]+)"', box)[1] for box in boxes if re.search(r"\schecked[\s>]", box)]
    assert sorted(ticked) == scopes
    assert "for a program that" in page


@pytest.fixture
def viewer(client):
    """``viewer(project)``: the session of somebody who may only read."""

    def log_in(project):
        client.force_login(MembershipFactory(project=project).user)
        return client

    return log_in


def test_who_only_reads_a_policy_reads_sentences(viewer):
    """Of every limit with its name, and no names of fields with their raw values."""
    limit = LimitFactory(name="l0", policy__slug="free", policy__project=ProjectFactory(), quota=20)
    for number in range(1, 6):
        LimitFactory(name=f"l{number}", policy=limit.policy)

    page = viewer(limit.policy.project).get(f"{POLICIES}{limit.policy.pk}/change/").content.decode()

    assert "<strong>l0</strong>: 20 requests per minute for each token or project with this policy" in page
    assert "<strong>l5</strong>" in page
    assert "Window seconds" not in page


def test_who_only_reads_a_token_reads_labels_and_times(viewer):
    """As in the list, with the time on the hour."""
    ends_at = timezone.now() + timedelta(days=2, hours=1)
    token = TokenFactory(labels={"team": "red"}, expires_at=ends_at)

    page = viewer(token.project).get(f"/admin/projects/token/{token.pk}/change/").content.decode()

    assert "team=red" in re.sub(r"<[^>]*>", "", page)
    assert f'title="{exact(ends_at, seconds=True)}"' in page
    assert "{&quot;team&quot;" not in page


def test_a_report_has_its_day_in_one_form(as_ann):
    """In the list and on its page."""
    report = DailyReport.objects.create(day=date(2026, 11, 24), csv="", html="")

    for url in ("/admin/usage/dailyreport/", f"/admin/usage/dailyreport/{report.pk}/change/"):
        page = as_ann.get(url).content.decode()
        assert "2026-11-24" in page
        assert "Nov. 24" not in page
