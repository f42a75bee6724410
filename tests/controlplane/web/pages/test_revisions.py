"""The list of revisions, and the page that undoes one, as people see them."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.overrides.actions import end_override, save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.actions import issue_token, revoke_token
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.web.kit.times import ZONE_COOKIE
from tests.controlplane.pages import words
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "admin")
LIST = "/admin/publishing/revision/"


def text_of(response) -> str:
    """What the page itself says, without its markup."""
    page = response.content.decode().partition('<div class="sg-page">')[2]
    return words(page)


def set_quota(limit: Limit, quota: int) -> int:
    before = limit.policy.as_record()
    with change(actor=ANN, reason="INC-88") as tx:
        Limit.objects.filter(pk=limit.pk).update(quota=quota)
        tx.updated(type(limit.policy).objects.get(pk=limit.policy_id), before)
    return tx.revision


@pytest.fixture
def limit(store) -> Limit:
    """A limit of 25 a minute for two tokens, published as revision 1."""
    limit = LimitFactory(policy__slug="chat-free", name="per-minute", quota=25)
    TokenFactory(policy=limit.policy)
    TokenFactory(policy=limit.policy)
    publisher.publish_all()
    return limit


def test_a_change_is_said_in_words(limit, as_ann):
    """With whom it concerns, why, and who has it."""
    set_quota(limit, 2)

    page = text_of(as_ann.get(LIST))

    assert "chat-free per-minute : before 25 requests per minute after 2 requests per minute for 2 tokens" in page
    assert "INC-88" in page
    assert "everything (4 documents, 2 tokens)" in page


def test_a_time_of_the_list_is_that_of_the_user_with_utc_beside(limit, as_ann):
    """As in every other list."""
    Revision.objects.update(at=datetime(2026, 11, 24, 12, 0, 5, tzinfo=UTC))
    as_ann.cookies[ZONE_COOKIE] = "Europe/Berlin"

    assert (
        '2026-11-24 13:00:05<span class="sg-help sg-block">12:00:05 UTC</span>'
        in as_ann.get(f"{LIST}?show=everything").text
    )


def test_changes_of_tokens_fold_into_one_row(limit, as_ann):
    """A page of policies is not pushed out of sight by a portal that issues tokens."""
    project = ProjectFactory()
    for name in ("a", "b"):
        with change(actor=ANN) as tx:
            token, _ = issue_token(tx, project=project, name=name)
    with change(actor=ANN) as tx:
        revoke_token(tx, token)
    set_quota(limit, 2)

    page = as_ann.get(LIST)

    assert "2 to 4" in text_of(page)
    assert "Tokens: 2 created, 1 revoked" in text_of(page)
    folded = re.search(r'href="(\?show=everything[^"]*)"', page.content.decode())[1].replace("&amp;", "&")
    assert "token b" in text_of(as_ann.get(LIST + folded))
    assert 'data-revision="4"' in as_ann.get(LIST + folded).content.decode()
    assert 'data-revision="5"' not in as_ann.get(LIST + folded).content.decode()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?q=chat-fr", [2]),
        ("?q=ann", [3, 2]),
        ("?q=other", [3]),
        ("?q=nobody", []),
        ("?q=2", [2]),
        ("?show=tokens", []),
    ],
)
def test_a_search_finds_policies_people_and_numbers(limit, as_ann, query, found):
    """Nothing is folded then."""
    set_quota(limit, 2)
    with change(actor=ANN) as tx:
        tx.created(PolicyFactory(slug="other"))

    page = as_ann.get(LIST + query).content.decode()

    assert [int(number) for number in re.findall(r'data-revision="(\d+)"', page)] == found


@pytest.mark.parametrize("query", ["?show=nonsense", "?before=0", "?before=x", "?since=%2D1", f"?q={'a' * 201}"])
def test_a_filter_that_is_none_says_so(as_ann, query):
    """It is neither an error of the server nor a list of everything."""
    page = as_ann.get(LIST + query)

    assert page.status_code == 200
    assert 'role="alert"' in page.content.decode()
    assert "data-revision" not in page.content.decode()


def test_a_long_list_has_pages(as_ann):
    """Each begins where the last one ended, and nothing is left out."""
    for number in range(1, 61):
        Revision.objects.create(number=number, kind=Revision.POLICY, changes={"documents": {}})
    seen, address = [], ""
    for _ in range(3):
        page = as_ann.get(LIST + address).content.decode()
        seen += map(int, re.findall(r'data-revision="(\d+)"', page))
        older = re.search(r'href="(\?[^"]*)">Older revisions', page)
        address = older[1].replace("&amp;", "&") if older else None

    assert (seen, address) == (list(range(60, 0, -1)), None)


def test_it_says_how_many_instances_have_it_and_after_how_long(limit, as_ann, instance):
    """Once all had it, and while one has not."""
    set_quota(limit, 2)
    set_quota(limit, 3)
    Revision.objects.filter(number=2).update(live_on=2, instances=2, lag_ms=410, is_counted=True)
    Revision.objects.filter(number=3).update(live_on=1, instances=2)
    instance("proxy-1", revision=3, revision_at=timezone.now())

    page = text_of(as_ann.get(LIST))

    assert "2 of 2 in 0.4 s" in page
    assert re.search(r"1 of 2, (less than )?[0-9]", page)


def test_the_undo_of_a_revision(limit, as_ann):
    """First what it would do, then the reason, then the new revision, which the list joins with the old one."""
    number = set_quota(limit, 2)
    address = f"{LIST}{number}/undo/"
    page = as_ann.get(address)
    assert "per-minute : before 2 requests per minute after 25 requests per minute" in page_text(page)
    assert "Counters: what is used stays used." in page_text(page)
    seen = page.context["plan"].digest

    assert "This field is required" in as_ann.post(address, {"seen": seen, "reason": ""}).content.decode()
    assert Limit.objects.get().quota == 2
    page = as_ann.post(address, {"seen": seen, "reason": "too tight"}, follow=True)

    assert [str(one) for one in page.context["messages"]] == ["Revision 2 is undone. Published as revision 3."]
    assert Limit.objects.get().quota == 25
    assert AuditEntry.objects.first().reason == "too tight"
    assert "Undo of 2." in text_of(page)
    assert "undone by 3" in text_of(page)
    assert f'href="{LIST}3/undo/"' in page.content.decode()
    assert f'href="{LIST}2/undo/"' not in page.content.decode()


def page_text(response) -> str:
    page = response.content.decode().partition('id="undo-title"')[2]
    return words(page)


def test_what_was_changed_meanwhile_is_shown_again(limit, as_ann):
    """Somebody saves between the look and the press."""
    address = f"{LIST}{set_quota(limit, 2)}/undo/"
    seen = as_ann.get(address).context["plan"].digest
    set_quota(limit, 7)

    page = as_ann.post(address, {"seen": seen, "reason": "too tight"})

    assert "Something was changed meanwhile" in page.content.decode()
    assert "Quota of chat-free/per-minute stays, because it was changed since." in page_text(page)
    assert Limit.objects.get().quota == 7


def test_a_slug_that_another_policy_has_now_stops_the_undo(limit, as_ann):
    """Nothing is undone by half."""
    before = limit.policy.as_record()
    with change(actor=ANN) as tx:
        type(limit.policy).objects.update(slug="renamed")
        tx.updated(type(limit.policy).objects.get(), before)
    address = f"{LIST}{tx.revision}/undo/"
    seen = as_ann.get(address).context["plan"].digest
    PolicyFactory(slug="chat-free")

    page = as_ann.post(address, {"seen": seen, "reason": "back"}, follow=True)

    assert "Nothing was changed." in str(next(iter(page.context["messages"])))
    assert type(limit.policy).objects.filter(slug="renamed").exists()


@pytest.mark.parametrize("number", ["1", "99"])
def test_a_revision_that_cannot_be_undone(limit, as_ann, number):
    """It wrote everything, or it does not exist."""
    page = as_ann.get(f"{LIST}{number}/undo/", follow=True)

    assert page.status_code == (200 if number == "1" else 404)
    assert number == "99" or "the audit does not say" in str(next(iter(page.context["messages"]))).lower()


def test_a_member_sees_and_undoes_only_changes_of_the_own_projects(limit, client, store):
    """Of others not even their existence."""
    own = LimitFactory(policy__project=ProjectFactory(slug="chat"), policy__slug="own", quota=25)
    foreign = LimitFactory(policy__project=ProjectFactory(slug="search"), policy__slug="foreign", quota=25)
    ours, theirs = set_quota(own, 2), set_quota(foreign, 2)
    shared = set_quota(limit, 2)
    user = UserFactory()
    MembershipFactory(user=user, project=own.policy.project, role="editor")
    client.force_login(user)

    page = client.get(LIST)

    assert re.findall(r'data-revision="(\d+)"', page.content.decode()) == [str(ours)]
    assert "foreign" not in page.content.decode()
    assert client.get(f"{LIST}?q=foreign").content.decode().count("data-revision") == 0
    assert [client.get(f"{LIST}{number}/undo/").status_code for number in (theirs, shared, 99)] == [404, 404, 404]
    seen = client.get(f"{LIST}{ours}/undo/").context["plan"].digest
    client.post(f"{LIST}{ours}/undo/", {"seen": seen, "reason": "back"})
    assert Limit.objects.get(pk=own.pk).quota == 25


def test_without_a_revision_the_list_is_empty(as_ann, client):
    """Of a new installation, and of a member of a project in which nothing was changed yet."""
    assert as_ann.get(LIST).status_code == 200
    client.force_login(MembershipFactory(project__slug="chat").user)

    page = client.get(LIST)

    assert (page.status_code, page.content.decode().count("data-revision")) == (200, 0)


def test_a_viewer_undoes_nothing(limit, client):
    """The list has no button, and the page is refused."""
    own = LimitFactory(policy__project=ProjectFactory(slug="chat"), policy__slug="own", quota=25)
    number = set_quota(own, 2)
    user = UserFactory()
    MembershipFactory(user=user, project=own.policy.project, role="viewer")
    client.force_login(user)

    assert "/undo/" not in client.get(LIST).content.decode()
    assert client.get(f"{LIST}{number}/undo/").status_code == 403
    assert client.post(f"{LIST}{number}/undo/", {"seen": "x", "reason": "x"}).status_code == 403
    assert Limit.objects.get(pk=own.pk).quota == 2


def test_what_is_for_operators_is_undone_by_operators(limit, client):
    """An override of a shared limit, and how many counters a project may have. A member reads the change."""
    project = ProjectFactory(slug="chat", partition_cap=900_000)
    override = Override(
        limit=limit, project=None, token=TokenFactory(project=project, policy=limit.policy), quota=1, reason="abuse"
    )
    with change(actor=ANN, reason="abuse") as set_lower:
        save_override(set_lower, override)
    before = project.as_record()
    with change(actor=ANN) as narrowed:
        Project.objects.filter(pk=project.pk).update(partition_cap=10)
        narrowed.updated(Project.objects.get(pk=project.pk), before)
    client.force_login(MembershipFactory(project=project, role="owner").user)

    for number in (set_lower.revision, narrowed.revision):
        assert client.get(f"{LIST}{number}/change/").status_code == 200
        assert client.get(f"{LIST}{number}/undo/").status_code == 403
        assert client.post(f"{LIST}{number}/undo/", {"seen": "x", "reason": "x"}).status_code == 403
    project.refresh_from_db()
    assert (Override.objects.get().quota, project.partition_cap) == (1, 10)


def test_an_ended_override_of_a_shared_limit_is_restored_by_operators(limit, client):
    """As it would be set by them."""
    project = ProjectFactory(slug="chat")
    override = OverrideFactory(limit=limit, token=TokenFactory(project=project, policy=limit.policy), quota=99)
    with change(actor=ANN) as ended:
        end_override(ended, override, timezone.now())
    client.force_login(MembershipFactory(project=project, role="owner").user)

    assert client.get(f"{LIST}{ended.revision}/undo/").status_code == 403


@pytest.mark.parametrize(("ends", "status"), [(None, 403), (timedelta(days=1), 200)])
def test_an_override_without_an_end_is_restored_by_operators(limit, client, ends, status):
    """An editor restores one of the own limits that has an end."""
    project = ProjectFactory(slug="chat")
    own = LimitFactory(policy__project=project, policy__slug="chat--own", quota=25)
    token = TokenFactory(project=project, policy=own.policy)
    override = OverrideFactory(limit=own, token=token, quota=60, ends_at=ends and timezone.now() + ends)
    with change(actor=ANN) as ended:
        end_override(ended, override, timezone.now())
    client.force_login(MembershipFactory(project=project, role="editor").user)

    assert client.get(f"{LIST}{ended.revision}/undo/").status_code == status


def test_the_page_of_a_revision_leads_to_its_undo(limit, as_ann):
    """And an undone one to its undo."""
    number = set_quota(limit, 2)

    assert f'href="{LIST}{number}/undo/"' in as_ann.get(f"{LIST}{number}/change/").content.decode()


@pytest.mark.parametrize("tokens", [1, 12])
def test_a_list_needs_few_statements(limit, as_ann, django_assert_max_num_queries, tokens):
    """However many tokens were issued between two policies."""
    project = ProjectFactory()
    for number in range(3):
        for _ in range(tokens):
            with change(actor=ANN) as tx:
                issue_token(tx, project=project, name="x", expires_at=timezone.now() + timedelta(days=1))
        set_quota(limit, number)

    with django_assert_max_num_queries(40):
        assert as_ann.get(LIST).status_code == 200


def published(number: int, kind: str, *projects: str) -> None:
    """A revision with a change of a token, or of a policy, in each of the projects."""
    Revision.objects.create(number=number, kind=kind, is_counted=True)
    PublishedChange.objects.create(change=f"chg_{number}", revision_id=number)
    for project in projects:
        named = {"object_type": kind, "object_id": f"{kind}-{number}", "object_label": f"{kind}-{number}"}
        fields = {"actor": "ann", "channel": "admin", "action": f"{kind}.create", "after": {}, **named}
        AuditEntry.objects.create(change=f"chg_{number}", project=project, **fields)


@pytest.mark.parametrize(
    ("query", "folded"),
    [("", {(8, 8): 1, (4, 4): 1, (1, 2): 2}), ("?before=7", {(4, 4): 1, (1, 2): 2}), ("?since=6", {(8, 8): 1})],
)
def test_a_member_sees_folded_only_the_changes_of_the_project(client, query, folded):
    """Between those of policies, and after the last one."""
    own, other = ProjectFactory().pk, ProjectFactory().pk
    kinds = ["token", "token", "policy", "token", "token", "policy", "policy", "token", "token"]
    of = [(own,), (own, other), (own,), (own,), (other,), (own,), (other,), (own,), (other,)]
    for number, (kind, projects) in enumerate(zip(kinds, of, strict=True), start=1):
        published(number, kind, *projects)
    client.force_login(MembershipFactory(project_id=own, role="viewer").user)

    rows = [row["row"] for row in client.get(LIST + query).context["rows"]]

    assert [row.revision.number for row in rows if not row.first] == ([6] if "since" in query else [6, 3])
    runs = {(row.first.number, row.revision.number): row for row in rows if row.first}
    assert {ends: row.count for ends, row in runs.items()} == folded
    assert {row.summary for row in runs.values()} <= {"Tokens: 1 created", "Tokens: 2 created"}


def test_the_folds_of_a_member_are_looked_for_within_the_page(client, django_assert_max_num_queries):
    """Not in all revisions, with one statement for the folds, and one for what each of them changed."""
    own = ProjectFactory().pk
    for number in range(1, 61):
        published(number, "policy" if number % 2 else "token", own)
    client.force_login(MembershipFactory(project_id=own, role="viewer").user)

    with django_assert_max_num_queries(25 + 25 + 10) as captured:
        page = client.get(LIST)

    (folds,) = [it["sql"] for it in captured if 'AS "gap"' in it["sql"]]
    assert folds.count('"number" > 11') == 2
    assert re.search(r'"revision_id" > 11\b', folds)
    assert len(page.context["rows"]) == 25 + 25
