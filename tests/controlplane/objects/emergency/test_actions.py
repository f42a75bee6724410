"""What operators do in an emergency, from the row to the decision of a proxy."""

import time
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.core import store
from controlplane.core.instants import microseconds
from controlplane.objects.emergency import tasks
from controlplane.objects.emergency.actions import (
    break_glass,
    end_glass,
    end_suspensions,
    mend_glass,
    resume,
    set_end,
    suspend,
    suspend_value,
)
from controlplane.objects.emergency.document import PROJECTS_NAMED, emergency_document
from controlplane.objects.emergency.models import BreakGlass, EndedSuspension, Suspension
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.releases.publishing.reconcile import reconcile
from controlplane.releases.publishing.rollback import rollback
from enforcement.model.sizes import MAX_ITEMS_PER_LIST
from enforcement.model.strict_json import dumps
from enforcement.store_calls.emergency import MAX_GLASS_SECONDS, parse_emergency
from tests.controlplane.objects.emergency.conftest import follows
from tests.factories import ProjectFactory

LATEST = timezone.now() + timedelta(days=365)

pytestmark = pytest.mark.django_db(transaction=True)


def in_an_hour():
    return timezone.now() + timedelta(hours=1)


def test_a_token_is_suspended_and_resumed(token, act, limiter, token_document):
    """A proxy refuses it within a second, and lets it in again. Its document is then as it was."""
    assert follows(limiter, "ok", token.secret)
    before = token_document(token.digest)
    suspension = act(suspend, token, reason="leaked?")

    assert follows(limiter, "suspended", token.secret)
    assert token_document(token.digest) == {**before, "suspended": True}
    act(resume, suspension)
    assert follows(limiter, "ok", token.secret)
    assert token_document(token.digest) == before
    entries = AuditEntry.objects.filter(object_id=token.pk).order_by("id")[1:]
    assert [(entry.action, entry.reason) for entry in entries] == [
        ("token.suspend", "leaked?"),
        ("token.resume", "an incident"),
    ]
    assert (entries[0].before["suspended"], entries[0].after["suspended"]) == (False, True)


def test_a_project_is_suspended_and_resumed(token, act, limiter, document):
    """It is published as inactive too, for enforcers that do not know suspensions."""
    suspension = act(suspend, token.project)

    assert follows(limiter, "suspended", token.secret)
    assert document(f"project:{token.project_id}")["active"] is False
    assert document("emergency")["projects"] == [token.project_id]
    act(resume, suspension)
    assert follows(limiter, "ok", token.secret)
    assert document("emergency") is None
    assert Project.objects.get().active


def test_what_is_suspended_already_stays_so(token, act):
    """With its first reason, and without another entry."""
    act(suspend, token, reason="first")
    act(suspend, token, reason="second")

    assert Suspension.objects.get().reason == "first"
    assert AuditEntry.objects.filter(action="token.suspend").count() == 1


@pytest.mark.parametrize("what", ["token", "project", "value"])
def test_a_suspension_ends_by_itself_while_the_control_plane_is_away(token, act, limiter, what):
    """Within a second or two of its end, because the document has it: nothing of the control plane runs here."""
    end = timezone.now() + timedelta(seconds=2)
    match what:
        case "value":
            act(suspend_value, "session", "bad", token.project, end)
        case _:
            act(suspend, getattr(token, what, token), end)
    assert follows(limiter, "suspended", token.secret, session="bad")
    wait_ms = limiter.check(token.secret, attributes={"session": "bad"}).retry_after_ms

    while limiter.check(token.secret, costs=0, attributes={"session": "bad"}).reason == "suspended":
        assert timezone.now() < end + timedelta(seconds=2)
        time.sleep(0.01)

    assert timezone.now() >= end - timedelta(milliseconds=50)  # the clock of the store is estimated
    assert 0 < wait_ms <= 2_000
    assert Suspension.objects.count() == 1


def over(suspension):
    """Move a suspension two hours back, so that it has ended an hour ago, and return its end."""
    begun = timezone.now() - timedelta(hours=2)
    Suspension.objects.filter(pk=suspension.pk).update(at=begun, ends_at=begun + timedelta(hours=1))
    return begun + timedelta(hours=1)


def test_the_task_takes_back_what_is_over_once(token, act, document, token_document):
    """It becomes history, the documents are as they were, and the audit says whose time was over."""
    before = [token_document(token.digest), document(f"project:{token.project_id}")]
    made = [act(suspend, it, in_an_hour()) for it in (token, token.project)]
    made.append(act(suspend_value, "session", "bad", None, in_an_hour()))
    assert (tasks.end_suspensions(), Suspension.objects.count()) == (0, 3)
    assert [row["id"] for row in document("emergency")["ending_projects"]] == [token.project_id]
    ends = [over(row) for row in made]

    assert (tasks.end_suspensions(), tasks.end_suspensions()) == (3, 0)

    kept = {row.pk: row for row in EndedSuspension.objects.all()}
    assert [kept[row.pk].ended_at for row in made] == ends
    assert {(row.by, row.ended_by) for row in kept.values()} == {("ann", "end_suspensions")}
    assert [token_document(token.digest), document(f"project:{token.project_id}")] == before
    assert document("emergency") is None
    found = AuditEntry.objects.filter(actor="end_suspensions", reason="its time is over").order_by("action")
    assert [entry.action for entry in found] == ["project.resume", "suspension.delete", "token.resume"]


def test_a_worker_whose_clock_is_ahead_takes_nothing_back_early(token, act, token_document, document):
    """Ends are meant by the clock of the store. Taken back sooner, the token would be let in sooner."""
    act(suspend, token, in_an_hour())
    act(break_glass, in_an_hour())
    ahead = timezone.now() + timedelta(hours=2)

    assert (end_suspensions(ahead), end_glass(ahead)) == (0, False)

    assert token_document(token.digest)["suspended"]
    assert document("emergency")["break_glass"]
    assert Suspension.objects.exists()


@pytest.mark.parametrize("hours", [1, 24])
def test_a_host_whose_clock_is_ahead_breaks_the_glass_at_once(hours, act, document, monkeypatch):
    """Enforcers wait for its beginning by the clock of the store, and refuse one that lasts longer than a day."""
    present = timezone.now()
    monkeypatch.setattr(store, "now", lambda: present - timedelta(minutes=5))

    act(break_glass, present + timedelta(hours=hours))

    glass = document("emergency")["break_glass"]
    assert glass["began_at_us"] == microseconds(present - timedelta(minutes=5))
    assert glass["ends_at_us"] - glass["began_at_us"] <= MAX_GLASS_SECONDS * 1_000_000


def test_nothing_is_taken_back_while_nobody_knows_the_time_of_the_store(token, act, settings):
    """It would be published when the store is back, by a worker whose clock is ahead before its end."""
    act(suspend, token, in_an_hour())
    act(break_glass, in_an_hour())
    url, settings.REDIS_URL = settings.REDIS_URL, "redis://127.0.0.1:1/0"
    late = timezone.now() + timedelta(hours=2)

    assert (end_suspensions(late), end_glass(late)) == (0, False)

    settings.REDIS_URL = url
    Suspension.objects.update(ends_at=timezone.now())
    assert end_suspensions(timezone.now()) == 1


def test_what_is_over_is_suspended_again_before_the_task_runs(token, act):
    """The former one is history then."""
    first = act(suspend, token, in_an_hour())
    over(first)

    second = act(suspend, token, reason="again")

    assert (Suspension.objects.get(), second.reason) == (second, "again")
    assert EndedSuspension.objects.get().pk == first.pk


def test_a_suspension_gets_another_end_and_loses_it(token, act, token_document):
    """With an audit entry each, that says the end before and after, and none if it is the same."""
    made, later = act(suspend, token, in_an_hour()), in_an_hour() + timedelta(hours=1)
    for end in (later, later, None):
        act(set_end, made, end)

    assert "suspended_until_us" not in token_document(token.digest)
    found = [entry.after.get("suspended_until") for entry in AuditEntry.objects.filter(action="token.suspend")]
    assert [end is None for end in sorted(found, key=str)] == [False, False, True]
    with pytest.raises(ValidationError, match="Must be in the future"):
        act(set_end, made, timezone.now())


def test_a_suspension_that_somebody_has_resumed_gets_no_end(token, act):
    """And whoever asked for it is not told that it is suspended."""
    made = act(suspend, token)
    assert act(set_end, made, in_an_hour())
    act(resume, made)

    assert not act(set_end, made, in_an_hour() + timedelta(hours=1))

    assert not Suspension.objects.exists()


def test_an_end_that_is_over_suspends_nothing(token, act):
    """Neither a token nor a value."""
    for action, subject in ((suspend, [token]), (suspend_value, ["session", "bad", None])):
        with pytest.raises(ValidationError, match="Must be in the future"):
            act(action, *subject, timezone.now())

    assert not Suspension.objects.exists()


def test_a_project_that_is_made_inactive_while_it_is_suspended_stays_so(token, act, limiter, document):
    """The document of the emergency says so, because that of the project says inactive already."""
    act(suspend, token.project, in_an_hour())
    assert document("emergency")["ending_projects"][0]["active"] is True

    def deactivate(tx):
        project, before = token.project, token.project.as_record()
        project.active = False
        project.save()
        tx.updated(project, before)

    act(deactivate)

    assert document("emergency")["ending_projects"][0]["active"] is False
    assert reconcile(full=True) == []


def test_a_value_is_suspended_and_resumed(token, act, limiter):
    """In its project. Requests without it pass."""
    suspension = act(suspend_value, "session", "bad", token.project)

    assert follows(limiter, "suspended", token.secret, session="bad")
    assert follows(limiter, "ok", token.secret, session="good")
    act(resume, suspension)
    assert follows(limiter, "ok", token.secret, session="bad")
    actions = AuditEntry.objects.filter(object_type="suspension").order_by("id").values_list("action", flat=True)
    assert list(actions) == ["suspension.create", "suspension.delete"]


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [("", "x", "name"), ("no spaces", "x", "name"), ("session", "", "value"), ("session", "a\u202eb", "value")],
)
def test_a_value_that_no_request_can_have_is_refused(token, act, name, value, field):
    """Nothing is suspended then."""
    with pytest.raises(ValidationError) as caught:
        act(suspend_value, name, value)

    assert field in caught.value.message_dict
    assert not Suspension.objects.exists()


def test_a_value_is_suspended_once(token, act):
    """In a project, and in all of them."""
    for within in (None, token.project):
        act(suspend_value, "ip", "192.0.2.1", within)
        with pytest.raises(ValidationError, match="This value is suspended already"):
            act(suspend_value, "ip", "192.0.2.1", within)


def test_more_values_than_a_document_holds_are_refused(token, act):
    """What is published stays readable."""
    rows = [Suspension(name="session", value=f"{n:01000}", reason="x", by="ann") for n in range(38)]
    Suspension.objects.bulk_create(rows)

    with pytest.raises(ValidationError, match="Too many values are suspended already"):
        act(suspend_value, "session", "y" * 1_000)


def test_no_value_is_suspended_that_no_enforcer_would_refuse(token, act):
    """A list of a document has at most a thousand items."""
    rows = [Suspension(name="s", value=str(n), reason="x", by="ann") for n in range(MAX_ITEMS_PER_LIST)]
    Suspension.objects.bulk_create(rows)

    with pytest.raises(ValidationError, match="Too many values are suspended already"):
        act(suspend_value, "s", "y")


def test_a_project_leaves_room_for_others(token, act):
    """One tenant must not use up what is there for all in an emergency."""
    rows = [Suspension(within=token.project, name="s", value=f"{n:01000}", reason="x", by="ann") for n in range(9)]
    Suspension.objects.bulk_create(rows)

    with pytest.raises(ValidationError, match="Too many values are suspended in this project already"):
        act(suspend_value, "s", "y" * 1_000, token.project)
    act(suspend_value, "s", "y" * 1_000, ProjectFactory())
    act(suspend_value, "s", "y" * 1_000)


def test_the_glass_can_be_broken_whatever_is_suspended(token, act):
    """The document has room for it beside as many values and projects as there can be."""
    rows = [Suspension(name="s", value=f"{n:01000}", reason="x", by="ann", ends_at=LATEST) for n in range(36)]
    projects = [Project(slug=f"p{n}", name="p") for n in range(PROJECTS_NAMED)]
    Project.objects.bulk_create(projects)
    Suspension.objects.bulk_create(
        [*rows, *(Suspension(project=p, reason="x", by="ann", ends_at=LATEST) for p in projects)]
    )
    act(suspend_value, "s", "y" * 1_000)

    act(break_glass, timezone.now() + timedelta(hours=1))

    found = parse_emergency(dumps(emergency_document()))
    assert (len(found.values[""]["s"]), len(found.projects)) == (37, PROJECTS_NAMED)
    assert found.glass_until_us


def test_a_deleted_project_takes_its_suspensions_with_it(token, act, document):
    """And the document of the emergency."""
    act(suspend_value, "session", "bad", token.project)
    act(suspend, token.project, in_an_hour())
    act(lambda tx: tx.delete(token.project))

    assert not Suspension.objects.exists()
    assert document("emergency") is None
    assert reconcile(full=True) == []


def test_a_project_is_deleted_that_is_suspended_itself(token, act, document):
    """No document of an emergency stays behind it."""
    act(suspend, token.project)
    act(lambda tx: tx.delete(token.project))

    assert document("emergency") is None
    assert reconcile(full=True) == []


def test_of_too_many_suspended_projects_those_with_an_end_are_named(token, act, limiter, document, monkeypatch):
    """Those without one are refused as inactive until somebody resumes them. A roll-back leaves them active, too."""
    for module in ("objects.emergency.document", "releases.publishing.rollback"):
        monkeypatch.setattr(f"controlplane.{module}.PROJECTS_NAMED", 1)
    with change(actor=Actor("ann", "admin")) as tx:
        tx.created(other := ProjectFactory())
    endless = act(suspend, other)
    ending = act(suspend, token.project, timezone.now() + timedelta(seconds=2))
    revision = Revision.objects.order_by("-number").first().number

    assert document("emergency")["projects"] == []
    assert follows(limiter, "suspended", token.secret)
    while limiter.check(token.secret, costs=0).reason == "suspended":
        assert timezone.now() < ending.ends_at + timedelta(seconds=2)
        time.sleep(0.01)
    assert limiter.check(token.secret, costs=0).reason == "ok"
    act(resume, endless)
    act(resume, ending)
    act(rollback, revision)
    assert set(Project.objects.values_list("active", flat=True)) == {True}


def test_a_roll_back_does_not_make_a_suspended_project_inactive_for_ever(token, act):
    """At the revision it was published as inactive, because it was suspended."""
    suspension = act(suspend, token.project)
    revision = OutboxEntry.objects.latest("pk").revision_id
    act(resume, suspension)
    act(rollback, revision)

    assert Project.objects.get().active


def test_the_reconciler_agrees_during_an_emergency(token, act):
    """It finds nothing to repair, neither then nor after it."""
    suspension = act(suspend, token.project)
    act(suspend, token)
    act(break_glass, in_an_hour())
    assert reconcile(full=True) == []

    act(resume, suspension)
    act(mend_glass)
    assert reconcile(full=True) == []


def test_a_store_that_was_emptied_gets_the_emergency_back(token, act, document, client_of_store):
    """As everything else."""
    act(suspend_value, "session", "bad")
    before = document("emergency")
    client_of_store.flushall()
    reconcile()

    assert before is not None
    assert document("emergency") == before


def test_a_broken_glass_lets_everything_pass_and_is_counted(token, act, limiter):
    """Live within a second. Mended, the limit is enforced with what was counted before."""
    assert [limiter.check(token.secret).reason for _ in range(3)] == ["ok", "ok", "limited"]
    glass = act(break_glass, in_an_hour(), reason="the limits are wrong")

    assert follows(limiter, "ok", token.secret)
    assert limiter.check(token.secret).allowed
    assert limiter.stats().would_deny == 1
    assert act(mend_glass)
    deadline = timezone.now() + timedelta(seconds=1)
    while limiter.check(token.secret).allowed:
        assert timezone.now() < deadline
    glass.refresh_from_db()
    assert (glass.by, glass.ended_by) == ("ann", "ann")
    actions = AuditEntry.objects.filter(object_type="breakglass").order_by("id").values_list("action", "reason")
    assert list(actions) == [
        ("breakglass.break", "the limits are wrong"),
        ("breakglass.mend", "an incident"),
    ]


def test_a_glass_has_a_reason_and_an_end_within_a_day(token, act):
    """Nothing is published otherwise."""
    wrong = [("", in_an_hour()), ("x", timezone.now()), ("x", timezone.now() + timedelta(hours=24, minutes=1))]
    for reason, end in wrong:
        with pytest.raises(ValidationError):
            act(break_glass, end, reason=reason)

    assert not BreakGlass.objects.exists()
    assert not OutboxEntry.objects.filter(kind="emergency").exists()


def test_a_glass_that_is_broken_gets_a_new_end(token, act, document):
    """There is one at a time."""
    act(break_glass, in_an_hour())
    later = act(break_glass, in_an_hour() + timedelta(hours=1))

    assert BreakGlass.present() == later
    assert document("emergency")["break_glass"]["ends_at_us"] == int(later.ends_at.timestamp() * 1_000_000)


def test_a_glass_whose_time_is_over_is_taken_back(token, act, document):
    """The task says so in the audit, once."""
    glass = act(break_glass, in_an_hour())
    assert not tasks.end_glass()
    begun = timezone.now() - timedelta(hours=2)
    BreakGlass.objects.update(began_at=begun, ends_at=begun + timedelta(hours=1))

    assert (tasks.end_glass(), tasks.end_glass()) == (True, False)
    glass.refresh_from_db()
    assert glass.ended_at == glass.ends_at
    assert document("emergency") is None
    entry = AuditEntry.objects.filter(action="breakglass.mend").get()
    assert (entry.actor, entry.reason) == ("end_glass", "its time is over")


def test_another_project_is_not_touched(token, act, limiter, document):
    """A value that is suspended in one project passes in another."""
    other = ProjectFactory(slug="other")
    act(suspend_value, "session", "bad", other)

    assert follows(limiter, "ok", token.secret, session="bad")
