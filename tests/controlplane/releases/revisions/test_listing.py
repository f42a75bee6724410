"""A revision says what it changed, and an action that changes nothing says that."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.actions import revoke_token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, PublishedChange, Revision
from controlplane.web.kit.forms import version_of
from tests.controlplane.pages import text_of
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "admin")
REVISIONS = "/admin/publishing/revision/"


def test_the_revision_of_an_override_says_what_changed(as_ann, store):
    """Its page has the fields before and after, its row in the list the object."""
    limit = LimitFactory(policy__slug="free", name="per-day")
    token = TokenFactory(name="web", policy=limit.policy)
    publisher.publish_all()
    override = Override(limit=limit, token=token, quota=500, reason="launch")
    with change(actor=ANN) as tx:
        save_override(tx, override)
    override.quota = 700
    with change(actor=ANN) as tx:
        save_override(tx, override)

    made, changed = text_of(as_ann.get(f"{REVISIONS}2/change/")), text_of(as_ann.get(f"{REVISIONS}3/change/"))
    name = f"override free/per-day for web ({token.prefix}…)"
    assert f"{name} created" in made
    assert "Limit not there free/per-day Quota not there 500" in made
    assert f"{name} changed Quota 500 700" in changed
    assert f"{name} free/per-day : before 500, never ends after 700, never ends" in text_of(as_ann.get(REVISIONS))


def test_the_revision_of_a_token_says_what_was_done_to_it(as_ann, store):
    """The audit entry is one click away, and leads back."""
    token = TokenFactory(name="web")
    publisher.publish_all()
    with change(actor=ANN, reason="leaked") as tx:
        revoke_token(tx, token)

    page = as_ann.get(f"{REVISIONS}2/change/").content.decode()
    entry = AuditEntry.objects.get()
    address = f"/admin/policies/auditentry/{entry.pk.replace('_', '_5F')}/change/"
    assert f'href="{address}">token web ({token.prefix}…) revoked' in page
    assert "<td>Revoked</td><td>no</td>" in page
    assert f'href="{REVISIONS}2/change/">revision 2' in as_ann.get(address).content.decode()


def test_a_revision_of_many_changes_names_the_first_and_the_number(as_ann):
    """The store was away while three projects were made."""
    for slug in ("a", "b", "c", "d"):
        with change(actor=ANN) as tx:
            tx.created(ProjectFactory(slug=slug))
    Revision.objects.create(
        number=1, changes={"documents": {}, "ids": [*OutboxEntry.objects.values_list("change", flat=True)]}
    )

    Revision.objects.update(kind=Revision.POLICY)
    changes = OutboxEntry.objects.values_list("change", flat=True)
    PublishedChange.objects.bulk_create(PublishedChange(change=change, revision_id=1) for change in changes)

    assert "project a created project b created project c created and 1 more" in text_of(as_ann.get(REVISIONS))


def test_a_revision_of_0_2_0_is_shown_as_before(as_ann):
    """It names its documents and tokens, and no changes."""
    changes = {"full": False, "documents": {}, "tokens": [{"id": "tok_1", "prefix": "sg_live_uBx4"}], "resets": []}
    Revision.objects.create(number=1, changes=changes)

    assert "token sg_live_uBx4…" in text_of(as_ann.get(f"{REVISIONS}?show=everything"))
    assert "token sg_live_uBx4…" in text_of(as_ann.get(f"{REVISIONS}1/change/"))


def test_a_roll_back_that_changes_nothing_says_so(as_ann, told, store):
    """A token was made since, so there is a later revision, and the policies are the same."""
    LimitFactory()
    publisher.publish_all()
    token = TokenFactory()
    with change(actor=ANN) as tx:
        tx.created(token)

    as_ann.post(f"{REVISIONS}1/roll_back/", {"_form_submitted": "on", "reason": "too much"})

    same = "Policies and projects are as they were at revision 1."
    assert told(as_ann.get(REVISIONS)) == [f"Nothing was changed. {same}"]
    assert Revision.objects.count() == 2


def project_form():
    row = ProjectFactory(slug="chat", name="Chat")
    cap = {"partition_cap": row.partition_cap}
    return row, {"slug": "chat", "name": "Chat", "active": "on", "time_zone": row.time_zone, **cap}


def override_form():
    row = OverrideFactory(limit=LimitFactory(policy__slug="free", name="per-day"))
    return row, {"limit": row.limit_id, "token": row.token_id, "quota": row.quota, "reason": row.reason}


def policy_form():
    row = PolicyFactory(slug="free", name="Free")
    return row, {"slug": "free", "name": "Free", "limits-TOTAL_FORMS": 0, "limits-INITIAL_FORMS": 0}


@pytest.mark.parametrize("form", [project_form, override_form, policy_form])
@pytest.mark.parametrize("button", ["_save", "_continue"])
def test_a_save_that_changes_nothing_says_so(as_ann, told, store, form, button):
    """No "changed successfully", no audit entry, no revision; what is pending from before is no part of it."""
    row, fields = form()
    OutboxEntry.objects.create(kind="project", object_id="proj_1", by="ann")
    url = f"/admin/{row._meta.app_label}/{row._meta.model_name}/{row.pk}/change/"

    response = as_ann.post(url, {**fields, "seen_version": version_of(row), button: "1"}, follow=True)

    assert told(response) == [f"Nothing was changed. {row} is as it was."]
    assert not AuditEntry.objects.exists()
    assert not Revision.objects.exists()
