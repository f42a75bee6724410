"""A draft of a policy: saved from the form, edited as a form, reviewed, published, and without an effect until then."""

import re
from contextlib import nullcontext, suppress
from copy import copy

import pytest
from django.core.exceptions import ValidationError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.policies.models import Limit, Policy
from controlplane.releases.drafts.actions import discard_draft, save_draft
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.releases.publishing.compile import documents
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.releases.publishing.writing import write
from controlplane.releases.revisions.undo import plan
from controlplane.web.kit.site import change_url
from tests.factories import (
    LimitFactory,
    MembershipFactory,
    OverrideFactory,
    PolicyDraftFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db

DRAFTS, POLICIES, ADD = "/admin/drafts/policydraft/", "/admin/policies/policy/", "/admin/policies/policy/add/"


def form_of(response) -> dict[str, str]:
    """Return the fields of the form on a page, as a browser posts them."""
    form, formsets = response.context["adminform"].form, response.context["inline_admin_formsets"]
    fields = {}
    for one in (form, *(part for inline in formsets for part in [inline.formset.management_form, *inline.formset])):
        for bound in one:
            with suppress(AttributeError):
                value = bound.field.widget.format_value(bound.value()) if bound.value() is not None else ""
                value = value[0] if isinstance(value, list) and value else value
                fields[bound.html_name] = "" if value in (None, []) else str(value)
    return fields


def messages_of(response) -> str:
    return " ".join(str(message) for message in response.context["messages"])


@pytest.fixture
def limit(db):
    """A limit of a policy in use, so that a change of it is felt."""
    limit = LimitFactory(policy__slug="chat", policy__project=ProjectFactory(slug="shop"), name="per-minute", quota=100)
    TokenFactory(project=limit.policy.project, policy=limit.policy)
    return limit


def deed_url(draft, deed) -> str:
    return change_url(draft).replace("/change/", f"/{deed}/")


def save_as_draft(client, policy, **changed):
    fields = form_of(client.get(change_url(policy)))
    return client.post(change_url(policy), {**fields, **changed, "_draft": "1"}, follow=True)


SEEN = ("_seen", "seen_version")


def published(client, draft, **more):
    """Confirm the review of a draft, as it is shown."""
    url = deed_url(draft, "publish")
    page = client.get(url)
    seen = {name: re.search(rf'name="{name}" value="(\w+)"', page.content.decode())[1] for name in SEEN}
    fields = {"_start": "enforce", **seen, "change_reason": "launch", **more}
    return page, client.post(url, fields, follow=True)


def test_a_change_is_kept_as_a_draft_without_an_effect(as_operator, limit):
    """The policy, its documents and the outbox are as they were. The audit tells of the draft."""
    before = documents([("policy", limit.policy.pk)])

    page = save_as_draft(as_operator, limit.policy, **{"limits-0-quota": "10", "change_reason": "launch"})

    draft = PolicyDraft.objects.get()
    assert (draft.policy, draft.project, draft.saved_by) == (limit.policy, limit.policy.project, "ann")
    assert [one["quota"] for one in draft.content["limits"]] == [10]
    assert page.request["PATH_INFO"] == change_url(draft)
    assert "Nothing is published." in messages_of(page)
    assert documents([("policy", limit.policy.pk)]) == before
    assert not OutboxEntry.objects.exists()
    assert not AuditEntry.objects.filter(object_type="policy").exists()
    (entry,) = AuditEntry.objects.all()
    assert (entry.action, entry.reason, entry.project) == ("policydraft.create", "launch", limit.policy.project_id)


def test_a_draft_is_published_through_the_review(as_operator, limit):
    """With the reason, as any change. It then is an ordinary change of the policy, and can be undone as one."""
    save_as_draft(as_operator, limit.policy, **{"limits-0-quota": "10"})
    draft = PolicyDraft.objects.get()

    page, after = published(as_operator, draft)

    assert "chat gets tighter: 100 becomes 10 (per-minute)" in page.content.decode()
    limit.refresh_from_db()
    draft.refresh_from_db()
    assert (limit.quota, draft.state) == (10, "published")
    assert after.request["PATH_INFO"] == change_url(limit.policy)
    assert OutboxEntry.objects.filter(kind="policy", object_id=limit.policy.pk).exists()
    actions = AuditEntry.objects.order_by("id").values_list("action", flat=True)
    assert sorted(actions) == ["policy.update", "policydraft.create", "policydraft.publish"]


@pytest.mark.parametrize(
    ("posted", "text"),
    [
        ({"change_reason": ""}, "Say why"),
        ({"_start": "now"}, "Choose how to start."),
        ({"_seen": "0" * 32}, "The change would do something else"),
    ],
)
def test_nothing_is_published_without_a_decision(as_operator, limit, posted, text):
    """The review is shown again, and says what is missing."""
    save_as_draft(as_operator, limit.policy, **{"limits-0-quota": "10"})

    _, after = published(as_operator, PolicyDraft.objects.get(), **posted)

    assert text in after.content.decode()
    limit.refresh_from_db()
    assert (limit.quota, PolicyDraft.objects.get().state) == (100, "open")
    assert not OutboxEntry.objects.exists()


def test_what_changed_since_the_review_is_not_published(as_operator, limit):
    """Not only a limit: the name, which the digest of what the change does is not about."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10}])
    page = as_operator.get(deed_url(draft, "publish"))
    seen = {name: re.search(rf'name="{name}" value="(\w+)"', page.content.decode())[1] for name in SEEN}
    PolicyDraft.objects.update(content={**draft.content, "name": "Another"})
    fields = {"_start": "enforce", **seen, "change_reason": "launch"}

    after = as_operator.post(deed_url(draft, "publish"), fields, follow=True)

    assert "The change would do something else" in after.content.decode()
    assert PolicyDraft.objects.get().is_open
    published(as_operator, draft)
    assert Policy.objects.get(pk=limit.policy.pk).name == "Another"


def test_a_rename_that_a_draft_takes_back_is_in_its_review(as_operator, limit):
    """And one after the review is not taken back unseen."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10}])
    Policy.objects.update(slug="renamed")
    page = as_operator.get(deed_url(draft, "publish")).content.decode()
    seen = {name: re.search(rf'name="{name}" value="(\w+)"', page)[1] for name in SEEN}
    Policy.objects.update(slug="again")

    after = as_operator.post(
        deed_url(draft, "publish"), {"_start": "enforce", **seen, "change_reason": "x"}, follow=True
    )

    assert "<li>Slug: renamed → chat</li>" in page
    assert "<li>Slug: again → chat</li>" in after.content.decode()
    assert "The change would do something else" in after.content.decode()
    assert Policy.objects.get().slug == "again"


def test_a_draft_that_was_published_meanwhile_is_not_discarded(limit):
    """Nobody is told that what is published was discarded."""
    draft = PolicyDraftFactory(policy=limit.policy, state="published")

    with pytest.raises(ValidationError, match="not open any more"), change(actor=Actor("ann", "admin")) as tx:
        discard_draft(tx, draft)

    assert PolicyDraft.objects.get().state == "published"


def test_a_draft_can_start_in_shadow(as_operator, limit):
    """What is enforced stays, and the new number is counted beside it."""
    save_as_draft(as_operator, limit.policy, **{"limits-0-quota": "10"})

    published(as_operator, PolicyDraft.objects.get(), _start="shadow")

    found = limit.policy.limits.values_list("name", "quota", "mode")
    assert sorted(found) == [("per-minute", 100, "enforce"), ("per-minute.candidate", 10, "shadow")]


def test_a_new_policy_is_a_policy_only_once_it_is_published(as_operator):
    """Until then its slug is free, and no list, choice or document has it."""
    fields = form_of(as_operator.get(ADD)) | {"slug": "night", "name": "Night", "limits-TOTAL_FORMS": "1"}
    blank = {name.replace("__prefix__", "0"): value for name, value in prefilled(as_operator).items()}

    page = as_operator.post(ADD, {**fields, **blank, "_draft": "1"}, follow=True)

    draft = PolicyDraft.objects.get()
    assert (draft.slug, draft.policy, Policy.objects.count(), Limit.objects.count()) == ("night", None, 0, 0)
    assert documents([("policy", draft.policy_key)]) == {f"policy:{draft.policy_key}": None}
    assert "a new policy" in page.content.decode()
    shown, _ = published(as_operator, draft)
    assert "night gets a new limit in shadow: per-minute" in shown.content.decode()
    policy = Policy.objects.get()
    assert (policy.pk, policy.slug, policy.limits.get().quota) == (draft.policy_key, "night", 7)


def prefilled(client) -> dict[str, str]:
    """Return the fields of a new limit, with a name and a quota."""
    (inline,) = client.get(ADD).context["inline_admin_formsets"]
    empty = {}
    for bound in inline.formset.empty_form:
        value = bound.value()
        empty[bound.html_name] = "" if value in (None, [], {}) else str(value)
    given = {"name": "per-minute", "quota": "7", "window_seconds": "60", "unit": "requests"}
    return empty | {f"limits-__prefix__-{name}": value for name, value in given.items()}


def test_a_draft_is_edited_in_the_form_of_a_policy(as_operator, limit):
    """Which keeps it as a draft, also by the usual button, and leaves the policy and its overrides as they are."""
    OverrideFactory(limit=limit, project=limit.policy.project, token=None)
    save_as_draft(as_operator, limit.policy, **{"limits-0-quota": "10", "limits-0-name": "per-min"})
    draft = PolicyDraft.objects.get()
    url = deed_url(draft, "edit")

    page = as_operator.get(url)
    fields = form_of(page)
    after = as_operator.post(url, {**fields, "limits-0-quota": "12", "_save": "Save"}, follow=True)

    assert "This is a draft." in page.content.decode()
    assert (fields["limits-0-quota"], fields["limits-0-name"]) == ("10", "per-min")
    draft.refresh_from_db()
    assert [one["quota"] for one in draft.content["limits"]] == [12]
    assert after.request["PATH_INFO"] == change_url(draft)
    assert not messages_of(as_operator.get(change_url(draft)))
    limit.refresh_from_db()
    assert (limit.quota, limit.name, limit.overrides.count()) == (100, "per-minute", 1)
    published(as_operator, draft)
    limit.refresh_from_db()
    assert (limit.quota, limit.name, limit.overrides.count()) == (12, "per-min", 1)


def test_two_people_who_save_a_draft_at_once_do_not_overwrite_each_other(limit):
    """The first one wins, and the second one is told. The form is checked before, but not under a lock."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10}])
    for quota, expected in (
        (51, nullcontext()),
        (52, pytest.raises(ValidationError, match="saved the draft meanwhile")),
    ):
        opened = copy(draft)
        content = {**draft.content, "limits": [{**limit.as_json(), "quota": quota}]}
        with expected, change(actor=Actor("ann", "admin")) as tx:
            save_draft(tx, opened, content)

    assert [one["quota"] for one in PolicyDraft.objects.get().content["limits"]] == [51]


def test_a_wrong_value_in_the_form_of_a_draft_changes_nothing(as_operator, limit):
    """The error is at its field. Neither the policy nor the draft has anything of it."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10, "name": "other"}])
    url = deed_url(draft, "edit")

    page = as_operator.post(url, {**form_of(as_operator.get(url)), "limits-0-quota": "-1"})

    assert page.status_code == 200
    assert "errorlist" in page.content.decode() or "text-red" in page.content.decode()
    assert [one["quota"] for one in PolicyDraft.objects.get().content["limits"]] == [10]
    assert list(limit.policy.limits.values_list("pk", "name", "quota")) == [(limit.pk, "per-minute", 100)]


def test_a_draft_says_that_its_policy_was_changed_since(as_operator, limit):
    """And the review compares with the policy as it is now."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": 10}])
    Limit.objects.filter(pk=limit.pk).update(quota=50)
    limit.policy.advance()

    page = as_operator.get(change_url(draft))

    assert "policy changed since" in page.content.decode()
    assert "chat gets tighter: 50 becomes 10" in published(as_operator, draft)[0].content.decode()


def test_a_draft_is_discarded_and_reopened(as_operator, limit):
    """Both with a reason in the audit. Only an open draft is published or edited."""
    draft = PolicyDraftFactory(policy=limit.policy)

    as_operator.post(deed_url(draft, "discard"), {"reason": "not needed", "_form_submitted": "on"})
    closed = [as_operator.get(deed_url(draft, deed)).status_code for deed in ("publish", "edit", "discard")]
    state = PolicyDraft.objects.get().state
    as_operator.post(deed_url(draft, "reopen"), {"reason": "needed", "_form_submitted": "on"})

    assert (state, closed, PolicyDraft.objects.get().state) == ("discarded", [403] * 3, "open")
    told = AuditEntry.objects.order_by("id").values_list("action", "reason")
    assert list(told) == [("policydraft.discard", "not needed"), ("policydraft.reopen", "needed")]


def test_a_slug_that_is_taken_by_now_is_said(as_operator):
    """The draft stays as it is. Its form opens with a slug that is free, and saves it."""
    draft = PolicyDraftFactory(slug="night")
    PolicyFactory(slug="night")

    page = as_operator.get(deed_url(draft, "publish"), follow=True)
    form = as_operator.get(deed_url(draft, "edit"))

    assert "cannot be published" in messages_of(page)
    assert PolicyDraft.objects.get().is_open
    assert "Another policy has the slug night by now" in form.content.decode()
    as_operator.post(deed_url(draft, "edit"), form_of(form))
    assert PolicyDraft.objects.get().slug == "night-2"
    published(as_operator, draft)
    assert sorted(Policy.objects.values_list("slug", flat=True)) == ["night", "night-2"]


def test_a_limit_that_cannot_be_enforced_is_said(as_operator, limit):
    """Such as one that a newer rule refuses. It is neither published nor left out."""
    draft = PolicyDraftFactory(policy=limit.policy, limits=[{**limit.as_json(), "quota": "ten"}])

    for deed in ("publish", "edit"):
        page = as_operator.get(deed_url(draft, deed), follow=True)
        assert page.request["PATH_INFO"] == change_url(draft)
        assert "A limit cannot be enforced: " in messages_of(page)
    assert as_operator.get(DRAFTS).status_code == 200
    assert list(limit.policy.limits.values_list("name", "quota")) == [("per-minute", 100)]


def test_no_draft_is_made_of_no_change(as_operator, limit):
    """It would only be in the way."""
    assert "no draft was saved" in messages_of(save_as_draft(as_operator, limit.policy))
    assert not PolicyDraft.objects.exists()


def test_members_see_the_drafts_of_their_projects(client, limit):
    """A draft of a policy that all projects share is for operators. Counts tell of no others."""
    mine, shared = PolicyDraftFactory(policy=limit.policy), PolicyDraftFactory(policy=PolicyFactory(slug="shared"))
    theirs = PolicyDraftFactory(policy=PolicyFactory(slug="theirs", project=ProjectFactory()))
    client.force_login(MembershipFactory(project=limit.policy.project, role="editor").user)

    assert [one.pk for one in client.get(DRAFTS).context["cl"].result_list] == [mine.pk]
    assert "1 open draft<" in client.get(POLICIES).content.decode()
    for draft in (shared, theirs):
        assert client.get(change_url(draft)).status_code == 404
        for deed in ("edit", "publish", "discard"):
            client.post(deed_url(draft, deed), {"reason": "r", "_form_submitted": "on"})
    assert PolicyDraft.objects.filter(state="open").count() == 3


@pytest.fixture
def orphan(as_operator, limit):
    """The open draft of a policy that was deleted since."""
    unused = LimitFactory(policy__slug="unused", name="per-day", quota=5).policy
    draft = PolicyDraftFactory(policy=unused, limits=[{**unused.limits.get().as_json(), "quota": 7}])
    url = change_url(unused).replace("/change/", "/delete/")
    assert "1 open draft stays, of a new policy then." in as_operator.get(url).content.decode()
    as_operator.post(url, {"post": "yes", "object_name": "unused"})
    assert not Policy.objects.filter(slug="unused").exists()
    draft.refresh_from_db()
    return draft


def test_a_draft_stays_when_its_policy_is_deleted(as_operator, orphan):
    """It says so, and can be published as a new policy, which has the id of the deleted one."""
    assert (orphan.policy, orphan.state) == (None, "open")
    assert "a new policy, because its own was deleted" in as_operator.get(change_url(orphan)).content.decode()

    page, _ = published(as_operator, orphan)

    assert "unused gets a new limit: per-day" in page.content.decode()
    policy = Policy.objects.get(slug="unused")
    assert (policy.pk, policy.limits.get().quota) == (orphan.policy_key, 7)
    orphan.refresh_from_db()
    assert (orphan.policy, orphan.state) == (policy, "published")


def test_a_draft_belongs_to_its_policy_again_once_that_exists_again(as_operator, orphan):
    """Because its deletion was undone. The draft then says that the policy was changed since."""
    entry = AuditEntry.objects.get(action="policy.delete")
    with change(actor=Actor("ann", "admin")) as tx:
        write(tx, plan([entry]), "undo")

    orphan.refresh_from_db()
    assert (orphan.policy, orphan.is_behind) == (Policy.objects.get(slug="unused"), True)
    assert "unused gets looser: 5 becomes 7" in published(as_operator, orphan)[0].content.decode()


def test_a_draft_that_is_edited_while_its_policy_is_deleted_is_kept(as_operator, orphan):
    """The form was opened before, so it names a policy that is gone."""
    stale = PolicyDraft.objects.get(pk=orphan.pk)
    stale.policy = PolicyFactory.build(pk=orphan.policy_key)

    with change(actor=Actor("ann", "admin")) as tx:
        save_draft(tx, stale, {**orphan.content, "name": "Another"})

    orphan.refresh_from_db()
    assert (orphan.policy, orphan.content["name"]) == (None, "Another")
