"""Actions on more rows than a form has fields: asked for as a browser does, done once, each row in the audit."""

import time
from html.parser import HTMLParser

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.people.models import Membership
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Token
from controlplane.operations.jobs import many_tokens, run
from controlplane.operations.jobs.models import Job
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.web.kit.edit_page import EditPage
from tests.controlplane.web.kit.reviews import enforce
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

TOKENS = "/admin/projects/token/"
# More than the 1,000 fields that Django accepts in a form.
MANY = 1_202


class HiddenFields(HTMLParser):
    """The hidden fields of the last form of a page, as a browser posts them."""

    def __init__(self, response) -> None:
        super().__init__()
        self.fields: dict[str, list[str]] = {}
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attributes) -> None:
        attributes = dict(attributes)
        if tag == "form":
            self.fields = {}
        if tag == "input" and attributes.get("type") == "hidden":
            self.fields.setdefault(attributes["name"], []).append(attributes["value"])


@pytest.fixture
def many(transactional_db, store):
    """Tokens of two projects, published. One has an override."""
    return make_tokens(MANY)


@pytest.fixture
def few(transactional_db, store):
    return make_tokens(60)


def make_tokens(number):
    projects = ProjectFactory(slug="chat"), ProjectFactory(slug="search")
    rows = [Token(project=projects[n % 2], name=f"t{n}") for n in range(number)]
    for row in rows:
        row.set_secret("live")
    Token.objects.bulk_create(rows)
    OverrideFactory(token=rows[0], limit=LimitFactory())
    publisher.publish_all()
    return rows


def tick_all(client, action, query=""):
    """Choose all rows of the list, not only those of the page."""
    page = client.get(TOKENS + query)
    ticked = [row.pk for row in page.context["cl"].result_list]
    return client.post(
        TOKENS + query, {"action": action, "select_across": "1", "index": "0", "_selected_action": ticked}
    )


def confirm(client, asked, query="", **more):
    return client.post(TOKENS + query, {**HiddenFields(asked).fields, **more}, follow=True)


def test_more_tokens_than_a_form_has_fields_are_revoked(as_ann, told, many):
    """The page says how many, of how many projects; each is revoked, published and in the audit."""
    asked = tick_all(as_ann, "revoke_selected")
    response = confirm(as_ann, asked, change_reason="leaked")

    page = asked.content.decode()
    assert "Revoke 1,202 tokens" in page
    assert "They belong to 2 projects." in page
    assert "and 1,182 more" in page
    assert "So many take more than a moment, so a job changes them." in page
    assert told(response) == []
    assert "Revoke 1,202 tokens of 2 projects" in response.content.decode()
    assert "Waiting for a worker." in response.content.decode()
    assert run.run_all(60.0)
    assert Job.objects.get().result == {"changed": MANY, "left as they were": 0}
    assert not Token.objects.filter(revoked_at=None).exists()
    entries = AuditEntry.objects.filter(action="token.revoke", reason="leaked", actor="ann")
    assert set(entries.values_list("object_id", flat=True)) == {row.pk for row in many}
    assert {entry.before["revoked_at"] for entry in entries} == {None}
    assert all(entry.after["revoked_at"] for entry in entries)
    assert OutboxEntry.objects.filter(revision__gte=2, kind="token").count() == MANY


def test_more_tokens_than_a_form_has_fields_are_deleted(as_ann, told, many, client_of_store):
    """Their overrides go with them, and proxies forget all of them."""
    asked = tick_all(as_ann, "delete_selected")
    response = confirm(as_ann, asked, change_reason="closed", asked_name="1202 tokens")

    assert "Delete 1,202 tokens" in asked.content.decode()
    assert "Delete 1,202 tokens of 2 projects" in response.content.decode()
    assert run.run_all(60.0)
    assert not Token.objects.exists()
    assert AuditEntry.objects.filter(action="token.delete", reason="closed").count() == MANY
    assert not client_of_store.exists(*(f"sg:{{doc}}:token:{row.digest}" for row in many))


def test_a_filter_holds_from_the_list_to_the_deed(as_ann, few):
    """All rows of the list are those that it shows."""
    query = "?q=chat"

    confirm(as_ann, tick_all(as_ann, "revoke_selected", query), query, change_reason="leaked")

    live = Token.objects.filter(revoked_at=None).values_list("project__slug", flat=True)
    assert set(live) == {"search"}
    assert len(live) == 30


def test_rows_that_nobody_has_seen_are_not_touched(as_ann, few):
    """A token that is created meanwhile is no part of what was confirmed, so the page asks again."""
    asked = tick_all(as_ann, "revoke_selected")
    TokenFactory(project=few[0].project)
    again = confirm(as_ann, asked, change_reason="leaked")

    assert "The selected rows are not the same as when you opened this page." in again.content.decode()
    assert "Revoke 61 tokens" in again.content.decode()
    assert not Token.objects.exclude(revoked_at=None).exists()
    confirm(as_ann, again, change_reason="leaked")
    assert not Token.objects.filter(revoked_at=None).exists()


def test_without_a_reason_the_page_asks_again(as_ann, few):
    """Blanks are no reason."""
    asked = confirm(as_ann, tick_all(as_ann, "revoke_selected"), change_reason="  ")

    assert "Revoke 60 tokens" in asked.content.decode()
    assert not AuditEntry.objects.exists()


def test_a_token_that_was_revoked_meanwhile_is_recorded_once(as_ann, told, store):
    """The list shows the revoked ones too; only those that were not are counted."""
    old, new = TokenFactory(revoked=True), TokenFactory()
    query = "?status=all"

    response = confirm(as_ann, tick_all(as_ann, "revoke_selected", query), query, change_reason="leaked")

    assert told(response) == ["1 token revoked. 1 stayed as they were. Published as revision 1."]
    assert [entry.object_id for entry in AuditEntry.objects.all()] == [new.pk]
    assert Token.objects.get(pk=old.pk).revoked_at == old.revoked_at
    assert Revision.objects.count() == 1


@pytest.mark.parametrize(
    ("action", "field", "value", "told_there", "changed"),
    [
        ("expiry_selected", "expires_at", "2099-12-31T10:00", "60 tokens changed.", {"expires_at__year": 2099}),
        ("label_selected", "label", "team=red", "60 tokens changed.", {"labels__team": "red"}),
        ("label_selected", "label", "team", "0 tokens changed. 60 stayed as they were.", {"labels": {}}),
    ],
)
def test_some_tokens_are_changed_at_once(as_ann, told, few, action, field, value, told_there, changed):
    """Each is in the audit with what it was and is, and is published once."""
    asked = tick_all(as_ann, action)
    response = confirm(as_ann, asked, **{field: value, "change_reason": "new contract"})

    assert told(response)[0].startswith(told_there)
    assert Token.objects.filter(**changed).count() == 60
    entries = AuditEntry.objects.filter(action="token.update", reason="new contract")
    assert entries.count() == (60 if told_there.startswith("60") else 0)


def test_some_tokens_get_another_policy_after_its_review(as_ann, told, few):
    """The review is one press more, and what it confirms is the same selection."""
    PolicyFactory(slug="gold")
    review = confirm(as_ann, tick_all(as_ann, "policy_selected"), policy="gold", change_reason="new contract")
    assert not AuditEntry.objects.exists()

    response = enforce(as_ann, review, "new contract", follow=True)

    assert told(response)[0].startswith("60 tokens changed.")
    assert Token.objects.filter(policy__slug="gold").count() == 60
    assert AuditEntry.objects.filter(action="token.update", reason="new contract").count() == 60


def test_what_tokens_cannot_have_is_refused_before_anything_is_done(as_ann, few):
    """The page says at which field what is wrong."""
    PolicyFactory(slug="chats", project=few[0].project)
    wrong = {
        ("policy_selected", "policy", "none"): "There is no policy &#x27;none&#x27; that all of these tokens may have.",
        ("policy_selected", "policy", "chats"): "There is no policy &#x27;chats&#x27;",
        ("expiry_selected", "expires_at", "2020-01-01T10:00"): "Must be in the future",
        ("label_selected", "label", "no label"): "Must be a label such as team=red",
    }
    for (action, field, value), error in wrong.items():
        asked = tick_all(as_ann, action)
        assert error in confirm(as_ann, asked, **{field: value, "change_reason": "x"}).content.decode()

    assert not AuditEntry.objects.exists()


def test_tokens_that_cannot_be_changed_stay_as_they_are(as_ann, told, store):
    """A revoked token gets no new end, and one with sixteen labels no other one."""
    full = {f"label{n}": "x" for n in range(16)}
    TokenFactory(revoked=True), TokenFactory(labels=full), TokenFactory()
    query = "?status=all"

    ends = confirm(as_ann, tick_all(as_ann, "expiry_selected", query), query, expires_at="", change_reason="x")
    label = tick_all(as_ann, "label_selected", query)
    labels = confirm(as_ann, label, query, label="team=red", change_reason="x")

    assert told(ends)[0].startswith("0 tokens changed. 3 stayed as they were.")
    assert told(labels)[0].startswith("2 tokens changed. 1 stayed as they were.")


def test_the_page_names_the_search_that_found_the_tokens(as_ann, few):
    """So that whoever confirms knows what they chose. A project is named, and not its id."""
    query = f"?q=t&status=active&project__id__exact={few[0].project_id}"
    page = tick_all(as_ann, "revoke_selected", query).content.decode()
    chosen = {"action": "delete_selected", "index": "0", "_selected_action": [few[0].pk]}
    ticked = as_ann.post(TOKENS + query, chosen).content.decode()

    assert "All that were found by search “t”, status “active”, project “chat”." in page
    assert "Ticked among those found by search “t”" in ticked


def test_a_deletion_from_another_list_names_its_search_and_is_bounded(as_ann, store, monkeypatch):
    """More rows than a request can delete are not even asked for."""
    policies, url = [PolicyFactory(slug=f"free-{n}") for n in range(4)], "/admin/policies/policy/?q=free"
    chosen = {"action": "delete_selected", "select_across": "1", "_selected_action": [row.pk for row in policies]}
    assert "All that were found by search “free”." in as_ann.post(url, chosen).content.decode()

    monkeypatch.setattr(EditPage, "most_at_once", 3)
    sent = {**chosen, "post": "yes", "object_name": "4 policies"}
    page = as_ann.post(url, sent, follow=True).content.decode()

    assert "Choose at most 3 policies. Filter the list first." in page
    assert Policy.objects.count() == 4


def test_the_deletion_of_tokens_asks_for_their_number(as_ann, few):
    """A press on the wrong button deletes nothing."""
    asked = tick_all(as_ann, "delete_selected")
    for given in ("", "59 tokens", "60 TOKENS"):
        page = confirm(as_ann, asked, change_reason="closed", asked_name=given).content.decode()
        assert "Type 60 tokens to delete" in page, given
        assert Token.objects.count() == 60, given

    confirm(as_ann, asked, change_reason="closed", asked_name="60 tokens")
    assert not Token.objects.exists()


def test_the_deletion_of_one_token_asks_for_its_name(as_ann, store):
    """On its page and from the list, because its secret cannot be made again."""
    one, two = TokenFactory(name="web"), TokenFactory(name="cron")
    asked = as_ann.post(TOKENS, {"action": "delete_selected", "index": "0", "_selected_action": [one.pk]})
    url = f"{TOKENS}{two.pk}/delete/"

    assert "Type web to delete" in asked.content.decode()
    assert "Type cron to delete. Nothing" in as_ann.post(url, {"post": "yes"}).content.decode()
    assert Token.objects.count() == 2
    confirm(as_ann, asked, change_reason="closed", asked_name="web")
    as_ann.post(url, {"post": "yes", "object_name": "cron"})
    assert not Token.objects.exists()


def test_a_member_changes_no_tokens_of_others(client, few):
    """Nor those of a project in which they only read."""
    user = User.objects.create_user("eve", is_staff=True)
    Membership.objects.create(user=user, project=few[0].project, role="editor")
    Membership.objects.create(user=user, project=few[1].project, role="viewer")
    client.force_login(user)

    chosen = {"action": "revoke_selected", "_selected_action": [few[0].pk, few[1].pk], "index": "0"}
    asked = client.post(TOKENS, chosen)
    confirm(client, asked, change_reason="leaked")

    assert "Revoke 1 token" in asked.content.decode()
    assert [token.pk for token in Token.objects.exclude(revoked_at=None)] == [few[0].pk]


@pytest.mark.parametrize(
    "lost",
    [
        lambda user: user.memberships.filter(project__slug="search").delete(),
        lambda user: user.memberships.filter(project__slug="search").update(role="viewer"),
        lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
        lambda user: User.objects.filter(pk=user.pk).update(is_staff=False),
        lambda user: user.delete(),
    ],
    ids=["membership", "role", "inactive", "no staff", "deleted"],
)
def test_a_job_ends_when_its_author_may_not_do_it_any_more(client, few, monkeypatch, lost):
    """Between two slices. What was done until then stays done."""
    monkeypatch.setattr(many_tokens, "MOST_IN_A_REQUEST", 20)
    monkeypatch.setattr(run, "AT_ONCE", 25)
    monkeypatch.setattr(run, "SLICE_SECONDS", 0.0)
    user = User.objects.create_user("eve", is_staff=True)
    for token in few[:2]:
        Membership.objects.create(user=user, project=token.project, role="editor")
    client.force_login(user)
    confirm(client, tick_all(client, "revoke_selected"), change_reason="leaked")
    run.run_next()

    lost(User.objects.get(username="eve"))
    run.run_all()

    job = Job.objects.get()
    assert (job.state, job.done, Token.objects.exclude(revoked_at=None).count()) == ("failed", 25, 25)
    assert job.error.startswith("eve may not change ")


@pytest.mark.proof
def test_a_killed_worker_leaves_nothing_half_done(as_ann, many, run_python):
    """Wherever it is killed, each token is revoked and recorded once."""
    confirm(as_ann, tick_all(as_ann, "revoke_selected"), change_reason="leaked")
    worker = run_python("from controlplane.operations.jobs import run as running\nrunning.run_all()")
    deadline = time.monotonic() + 60
    while not Job.objects.get().done and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.kill()
    worker.wait()
    run.run_all(60.0)

    assert Job.objects.get().state == "done"
    assert AuditEntry.objects.filter(action="token.revoke").count() == MANY
    assert not Token.objects.filter(revoked_at=None).exists()


def test_the_deletion_of_a_project_counts_what_goes_with_it(as_ann, told, few):
    """It does not name each of its tokens."""
    project = few[0].project
    page = as_ann.get(f"/admin/projects/project/{project.pk}/delete/").content.decode()

    assert "With all that belongs to it, this deletes: 1 project, 30 tokens, 1 override." in page
    assert "t58" not in page
    assert "Type <code>chat</code> to delete" in page
    sent = {"post": "yes", "object_name": "chat"}
    response = as_ann.post(f"/admin/projects/project/{project.pk}/delete/", sent, follow=True)
    assert told(response) == ["The project “chat” was deleted successfully. Published as revision 2."]


def test_a_suspended_value_is_not_in_the_way_of_its_project(as_ann, told, few):
    """Nobody deletes suspensions by themselves, so nobody has the right to, and they go with their project."""
    project = few[0].project
    Suspension.objects.create(within=project, name="session", value="b7f1c0", reason="scraper", by="ann")
    page = as_ann.get(f"/admin/projects/project/{project.pk}/delete/").content.decode()

    assert "1 suspension" in page
    as_ann.post(f"/admin/projects/project/{project.pk}/delete/", {"post": "yes", "object_name": "chat"})

    assert not Suspension.objects.exists()


def test_a_policy_in_use_says_how_many_use_it(as_ann, few):
    """And names the first of them."""
    policy = LimitFactory().policy
    Token.objects.update(policy=policy)

    page = as_ann.get(f"/admin/policies/policy/{policy.pk}/delete/").content.decode()

    assert "60 objects still use it. Change or delete these first:" in page
    assert "and more, 60 in all" in page
    assert page.count("<li>Token: ") == 20


@pytest.mark.parametrize(
    "given", [{}, {"object_name": ""}, {"object_name": "Chat"}, {"object_name": "chat-2"}, {"post": ""}]
)
def test_the_deletion_of_a_project_or_policy_asks_for_its_name(as_ann, store, given):
    """Without it, nothing is deleted, and the page says what to type."""
    rows = ProjectFactory(slug="chat"), PolicyFactory(slug="chat")
    for row in rows:
        model = row._meta.model_name
        url = f"/admin/{row._meta.app_label}/{model}/{quote(row.pk)}/delete/"
        page = as_ann.post(url, {"post": "yes", "change_reason": "x", **given}).content.decode()
        assert "Type chat to delete. Nothing is deleted yet." in page

    assert all(type(row).objects.filter(pk=row.pk).exists() for row in rows)
    assert not AuditEntry.objects.exists()


def test_the_deletion_of_several_policies_asks_for_their_number(as_ann, store):
    """And that of one from the list for its name."""
    url, rows = "/admin/policies/policy/", [PolicyFactory(slug=slug) for slug in ("a", "b")]
    chosen = {"action": "delete_selected", "_selected_action": [row.pk for row in rows], "post": "yes"}

    page = as_ann.post(url, chosen).content.decode()
    assert "Type 2 policies to delete. Nothing is deleted yet." in page
    as_ann.post(url, {**chosen, "object_name": "2 policies"})
    assert not Policy.objects.exists()
    row = PolicyFactory(slug="c")
    as_ann.post(url, {**chosen, "_selected_action": [row.pk], "object_name": "c"})
    assert not Policy.objects.exists()
