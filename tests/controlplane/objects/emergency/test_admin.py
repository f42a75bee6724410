"""The page of an emergency, the banner, and the buttons on the pages of tokens and projects."""

import json
from datetime import UTC, timedelta

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from controlplane.objects.emergency.actions import break_glass, mend_glass, resume, suspend, suspend_value
from controlplane.objects.emergency.models import BreakGlass, Suspension
from controlplane.objects.people.models import Membership
from controlplane.releases.publishing.publisher import publish_pending
from controlplane.web.kit.ends import quick_end
from tests.controlplane.pages import text_of
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/emergency/suspension/"


@pytest.fixture
def member(client, token):
    """``member("editor")``: the session of an account with this role in the project of the token."""

    def sign_in(role):
        user = User.objects.create_user(role, is_staff=True)
        Membership.objects.create(user=user, project=token.project, role=role)
        client.force_login(user)
        return client

    return sign_in


def test_the_glass_is_broken_and_mended_on_the_page(as_ann, told, token):
    """Each page says so in between, and the page says what the instances do."""
    sent = {"glass-length": "3600", "glass-reason": "the limits are wrong"}
    response = as_ann.post(PAGE + "glass/break/", sent, follow=True)

    assert "Every limit is a shadow until" in told(response)[0]
    glass = BreakGlass.present()
    assert glass.reason == "the limits are wrong"
    assert timedelta(minutes=59) < glass.ends_at - timezone.now() <= timedelta(hours=1)
    overview = as_ann.get("/admin/").content.decode()
    assert "No limit is enforced." in overview
    assert "the limits are wrong" in overview
    assert "No instance reports." in as_ann.get(PAGE).content.decode()
    response = as_ann.post(PAGE + "glass/mend/", {"reason": "over"}, follow=True)
    assert "Every limit is enforced again." in told(response)[0]
    assert "No limit is enforced." not in response.content.decode()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ({"glass-reason": "x"}, "Choose an end. At most 24 hours."),
        ({"glass-reason": "x", "glass-length": "172800"}, "Select a valid choice"),
        ({"glass-length": "3600", "glass-reason": " "}, "This field is required."),
    ],
)
def test_a_glass_needs_a_reason_and_an_end(as_ann, token, sent, error):
    """The page says at which field what is missing."""
    assert error in as_ann.post(PAGE + "glass/break/", sent).content.decode()
    assert not BreakGlass.objects.exists()


def test_an_instance_that_does_not_follow_is_named(as_ann, act, token, instance, client_of_store):
    """An older one does not know the document, and goes on enforcing."""
    act(break_glass, timezone.now() + timedelta(hours=1))
    old = {"id": "old-1", "state": "ok", "seen_at_us": int(timezone.now().timestamp() * 1_000_000)}
    client_of_store.set("sg:{fleet}:instance:old-1", json.dumps(old))
    client_of_store.zadd("sg:{fleet}:instances", {"old-1": 1})

    page = as_ann.get(PAGE).content.decode()

    assert "0 of 1 instances have it; old-1 still enforces its limits." in page


def test_the_banner_is_on_no_page_without_an_account(client, act, token):
    """Nobody learns of it who is not signed in."""
    act(break_glass, timezone.now() + timedelta(hours=1))

    assert "No limit is enforced." not in client.get("/admin/login/").content.decode()


def test_a_token_is_suspended_and_resumed_on_its_page(as_ann, token):
    """Each button is there when it has something to do."""
    pages = [reverse(f"admin:projects_token_{name}", args=[token.pk]) for name in ("change", "suspend", "resume")]
    page, dialog, other = pages
    sent = {"_form_submitted": "on", "reason": "leaked?", "ends_at": "friday"}
    assert other not in as_ann.get(page).content.decode()

    as_ann.post(dialog, sent)

    found = Suspension.objects.get()
    assert (found.reason, found.ends_at) == ("leaked?", quick_end("friday", timezone.now(), UTC))
    shown = as_ann.get(page).content.decode()
    assert f"until {found.ends_at:%Y-%m-%d} 18:00 UTC" in shown
    assert dialog not in shown
    as_ann.post(other, sent)
    assert not Suspension.objects.exists()
    history = as_ann.get(PAGE).content.decode()
    assert "Suspended before" in history
    assert "by ann" in history


def test_a_page_says_first_that_its_row_is_refused(as_ann, act, token):
    """Until when, by whom and why, for a suspended token and project. One that is over says nothing."""
    end = timezone.now() + timedelta(hours=3, minutes=1)
    rows = [act(suspend, it, end, reason="leaked in a log") for it in (token, token.project)]
    pages = [reverse(f"admin:projects_{it._meta.model_name}_change", args=[it.pk]) for it in (token, token.project)]

    for page in pages:
        shown = text_of(as_ann.get(page))
        assert f"Suspended until {end:%Y-%m-%d %H:%M} UTC , 3" in shown
        assert "ann: leaked in a log" in shown
    Suspension.objects.filter(pk__in=[row.pk for row in rows]).update(ends_at=timezone.now())
    assert not any("sg-refused" in as_ann.get(page).content.decode() for page in pages)


def test_a_suspension_gets_another_end_on_the_page(as_ann, act, told, token):
    """Or none. A word that is no end changes nothing."""
    row = act(suspend, token)
    address = f"{PAGE}{row.pk}/end/"

    assert "until" in told(as_ann.post(address, {f"{row.pk}-ends_at": "hour"}, follow=True))[0]
    row.refresh_from_db()
    assert timedelta(minutes=59) < row.ends_at - timezone.now() <= timedelta(hours=1)
    assert "keeps its end." in told(as_ann.post(address, {f"{row.pk}-ends_at": "tomorrow"}, follow=True))[0]
    assert Suspension.objects.get().ends_at == row.ends_at
    assert "until somebody resumes it" in told(as_ann.post(address, {f"{row.pk}-ends_at": ""}, follow=True))[0]
    assert Suspension.objects.get().ends_at is None


def test_what_somebody_else_has_resumed_is_no_missing_page(as_ann, act, told, token):
    """Of two operators in a hurry, the second learns what has happened. An id that never was has no page."""
    row = act(suspend, token)
    act(resume, row)
    for what in ("resume", "end"):
        response = as_ann.post(f"{PAGE}{row.pk}/{what}/", {f"{row.pk}-ends_at": "hour"}, follow=True)
        assert "is not suspended any more" in told(response)[0]
        assert as_ann.post(f"{PAGE}sus_0/{what}/").status_code == 404
    assert not Suspension.objects.exists()


def test_the_banner_claims_nothing_that_is_not_published(as_ann, store, token, settings):
    """While the store is away, proxies go on enforcing. Published later, the glass is broken everywhere."""
    sent = {"glass-length": "3600", "glass-reason": "wrong limits"}
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    page = as_ann.post(PAGE + "glass/break/", sent, follow=True).content.decode()
    assert "This is not published yet." in page
    assert "No limit is enforced." not in page
    assert "which is not published yet" in as_ann.get("/admin/").content.decode()

    settings.REDIS_URL = store.url
    publish_pending()
    assert "No limit is enforced." in as_ann.get(PAGE).content.decode()


def test_the_second_who_breaks_the_glass_learns_of_the_first(as_ann, act, told, token):
    """The new end replaces the first one, which may have been later."""
    act(break_glass, timezone.now() + timedelta(hours=4), reason="wrong quota")

    sent = {"glass-length": "900", "glass-reason": "checkout"}
    messages = told(as_ann.post(PAGE + "glass/break/", sent, follow=True))

    assert any("in 15 min" in message for message in messages)
    assert any(message.startswith("ann had broken the glass already, until") for message in messages)
    assert any("wrong quota. Your end has replaced that one." in message for message in messages)


@pytest.mark.parametrize("minutes", [-5, 5])
def test_the_clock_of_a_host_does_not_hide_a_broken_glass(as_ann, api, act, token, limiter, monkeypatch, minutes):
    """Enforcers go by the clock of the store. A glass of a minute must not be over for them before it begins."""
    # The clock of the process itself, which the limiter and the session use, stays right.
    real = timezone.now
    monkeypatch.setattr("django.utils.timezone.now", lambda: real() + timedelta(minutes=minutes))
    assert api("PUT", "break-glass", {"seconds": 60, "reason": "x"}).json()["broken"]

    assert limiter.check(token.secret, costs=2).allowed
    deadline = real() + timedelta(seconds=1)
    while not limiter.check(token.secret).allowed:
        assert real() < deadline
    assert api("GET", "break-glass").json()["broken"]
    assert "No limit is enforced." in as_ann.get("/admin/").content.decode()
    present = real() + timedelta(seconds=61)
    monkeypatch.setattr("controlplane.core.store.now", lambda: present)
    assert api("GET", "break-glass").json()["broken"] is (minutes < 0)


def test_a_suspended_row_says_so_in_its_list(as_ann, act, token):
    """In the lists of tokens and projects."""
    act(suspend, token)
    act(suspend, token.project)

    for name in ("token", "project"):
        assert ">suspended<" in as_ann.get(f"/admin/projects/{name}/").content.decode()


def test_a_value_is_suspended_and_resumed_on_the_page(as_ann, told, token):
    """An error is shown at its field."""
    sent = {"value-name": "session", "value-value": "bad", "value-within": "", "value-reason": "attack"}
    wrong = as_ann.post(PAGE + "value/", {**sent, "value-name": "no spaces"}).content.decode()
    assert "Must be the name of an attribute" in wrong

    assert "session = bad is suspended." in told(as_ann.post(PAGE + "value/", sent, follow=True))[0]
    again = as_ann.post(PAGE + "value/", sent).content.decode()
    assert "This value is suspended already." in again
    row = Suspension.objects.get()
    assert "session = bad" in as_ann.get(PAGE).content.decode()
    as_ann.post(f"{PAGE}{row.pk}/resume/")
    assert not Suspension.objects.exists()


def test_an_editor_suspends_in_the_own_project_only(member, act, token):
    """Neither everywhere, nor in another one, and the glass is for operators."""
    other = TokenFactory(project=ProjectFactory(slug="other"))
    foreign = act(suspend, other)
    editor = member("editor")
    sent = {"value-name": "session", "value-value": "bad", "value-reason": "attack"}

    page = editor.get(PAGE).content.decode()
    assert "Break glass" not in page
    assert other.name not in page
    assert editor.post(f"{PAGE}{foreign.pk}/resume/").status_code == 404
    assert editor.post(PAGE + "glass/break/", {"glass-length": "900", "glass-reason": "x"}).status_code == 403
    assert editor.post(PAGE + "glass/mend/").status_code == 403
    editor.post(PAGE + "value/", {**sent, "value-within": ""})
    editor.post(PAGE + "value/", {**sent, "value-within": other.project_id})
    assert Suspension.objects.count() == 1
    editor.post(PAGE + "value/", {**sent, "value-within": token.project_id})
    assert Suspension.objects.filter(within=token.project).exists()


def test_a_viewer_sees_what_is_suspended_and_changes_nothing(member, act, token):
    """Also a value that is suspended in all projects, because it concerns the own one."""
    everywhere, own = act(suspend_value, "ip", "192.0.2.1"), act(suspend_value, "session", "bad", token.project)
    viewer = member("viewer")

    page = viewer.get(PAGE).content.decode()

    assert "192.0.2.1" in page
    assert "Suspend this value" not in page
    assert [viewer.post(f"{PAGE}{row.pk}/resume/").status_code for row in (everywhere, own)] == [403, 403]
    assert viewer.post(PAGE + "value/", {}).status_code == 403
    assert Suspension.objects.count() == 2


def test_an_account_without_a_project_sees_nothing(client, act, token):
    """Not even that there is an emergency page."""
    client.force_login(User.objects.create_user("nobody", is_staff=True))

    assert client.get(PAGE).status_code == 403


def test_lists_find_what_is_suspended(as_ann, act):
    """Of tokens, only those that would be let in otherwise. A token of a suspended project is not suspended itself."""
    away, free, gone = (TokenFactory(project__slug=slug, name=f"of-{slug}") for slug in ("away", "free", "gone"))
    for subject in (away.project, free, gone):
        act(suspend, subject)
    type(gone).objects.filter(pk=gone.pk).update(revoked_at=timezone.now())

    def found(path):
        return {row.pk for row in as_ann.get(path).context["cl"].result_list}

    assert found("/admin/projects/token/?status=suspended") == {free.pk}
    assert found("/admin/projects/project/?suspended=yes") == {away.project_id}
    assert found("/admin/projects/project/?suspended=no") == {free.project_id, gone.project_id}


def test_live_counters_say_what_is_in_force(as_ann, api, token, act):
    """A limit that denies is a shadow while the glass is broken, in the admin and over REST, and no longer."""

    def kinds():
        page = as_ann.get(f"/admin/projects/token/{token.pk}/counters/").content.decode()
        (counter,) = api("GET", f"counters?token={token.pk}").json()["results"]
        return ">enforced<" in page, "shadow until" in page, counter["mode"]

    assert kinds() == (True, False, "enforce")
    act(break_glass, timezone.now() + timedelta(hours=1))
    assert kinds() == (False, True, "shadow")
    act(mend_glass)
    assert kinds() == (True, False, "enforce")
