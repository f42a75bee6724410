"""What the store has and a restored database has not."""

import os
import subprocess
import sys
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.emergency.actions import resume, set_end, suspend, suspend_value
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.projects.actions import revoke_token
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import Revision
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def test_a_database_without_the_backup_is_named(store, settings, tmp_path):
    """As an operator sees it who has created the database and restored nothing into it."""
    given = {
        "SECRET_KEY": "0123456789abcdef" * 4,
        "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3",
        "SLUICEGATE_REDIS_URL": settings.REDIS_URL,
    }
    said = subprocess.run(
        [sys.executable, "manage.py", "compare_store"],
        env={**os.environ, **given, "DJANGO_SETTINGS_MODULE": "controlplane.settings"},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 1
    assert said.stderr.startswith("CommandError: The database cannot be read. Restore the backup first. It says: ")


def compare(*options: str) -> list[str]:
    output = StringIO()
    call_command("compare_store", *options, stdout=output)
    return output.getvalue().splitlines()


@pytest.fixture
def restored(store):
    """One token was revoked, one deleted and one issued after the backup that SQL is now."""
    names = ("kept", "revoked", "deleted")
    kept, revoked, deleted = (TokenFactory(name=name) for name in names)
    publisher.publish_all()
    backup = Revision.objects.get().number
    with change(actor=Actor("ann", "command")) as tx:
        revoke_token(tx, revoked)
        tx.delete(deleted)
        tx.created(TokenFactory(name="issued", project=kept.project))
    Token.objects.filter(name="issued").delete()
    Token.objects.filter(name="revoked").update(revoked_at=None)
    deleted.save(force_insert=True)
    Revision.objects.filter(number__gt=backup).delete()
    return {token.name: token for token in Token.objects.all()}


def test_what_would_be_accepted_again_is_named(restored):
    """Each token with its id, and nothing of the one that did not change."""
    said = compare()

    assert "1 tokens are only in the store, and will be refused as unknown." in said
    assert sorted(line for line in said if line.startswith("The token")) == [
        f"The token deleted ({restored['deleted'].pk}) was deleted.",
        f"The token revoked ({restored['revoked'].pk}) was revoked.",
    ]
    assert said[-1].startswith("If the database is published, 2 tokens are accepted again.")


def test_they_are_revoked_with_a_reason_and_nothing_is_published_yet(restored, token_document):
    """The operator publishes when the differences are settled. Afterwards nothing differs."""
    assert compare("--revoke", "--reason", "restored")[-1] == "Revoked 2 tokens."

    assert set(Token.objects.filter(revoked_at=None).values_list("name", flat=True)) == {"kept"}
    assert set(AuditEntry.objects.filter(reason="restored").values_list("action", flat=True)) == {"token.revoke"}
    assert token_document(restored["deleted"].digest) is None
    publisher.publish_all()
    assert compare()[1:] == ["No token would be accepted that the store refuses."]


def test_a_document_that_differs_is_named(restored):
    project = restored["kept"].project
    Project.objects.filter(pk=project.pk).update(active=False)

    assert [line for line in compare() if line.startswith("The document")] == [
        f"The document project:{project.pk} differs."
    ]


def test_a_token_that_is_not_published_yet_is_not_revoked(store):
    """A change that waits for the store looks like a deletion after a backup."""
    TokenFactory(name="kept")
    publisher.publish_all()
    store.freeze()
    with change(actor=Actor("ann", "command")) as tx:
        tx.created(new := TokenFactory(name="new"))
    store.thaw()

    said = compare("--revoke", "--reason", "restored")

    assert f"The token new ({new.pk}) is not published yet." in said
    assert said[-1] == "No token would be accepted that the store refuses."
    assert not Token.objects.exclude(revoked_at=None).exists()


@pytest.fixture
def ends_brought_forward(store) -> dict[str, Token]:
    """One token was rotated after the backup and its end is over, and one ends in an hour."""
    now = timezone.now()
    ends = {"kept": None, "over": now - timedelta(minutes=1), "later": now + timedelta(hours=1)}
    tokens = {name: TokenFactory(name=name) for name in ends}
    publisher.publish_all()
    backup = Revision.objects.get().number
    with change(actor=Actor("ann", "command")) as tx:
        for name, end in ends.items():
            Token.objects.filter(name=name).update(expires_at=end)
            tx.updated(Token.objects.get(name=name), before={})
    Token.objects.update(expires_at=None)
    Revision.objects.filter(number__gt=backup).delete()
    return tokens


def test_an_earlier_end_is_not_lost(ends_brought_forward):
    """A rotated token would be accepted for ever by a database that does not know its rotation."""
    over, later = (ends_brought_forward[name].pk for name in ("over", "later"))

    said = compare("--revoke", "--reason", "restored")

    assert sorted(line for line in said if line.startswith("The token")) == [
        f"The token later ({later}) ends earlier in the store.",
        f"The token over ({over}) has ended.",
    ]
    assert said[-2:] == ["Revoked 1 tokens.", "Gave 1 tokens the end that they have in the store."]
    assert Token.objects.exclude(revoked_at=None).get().pk == over
    assert Token.objects.exclude(expires_at=None).get().pk == later
    assert AuditEntry.objects.get(object_id=later, reason="restored").action == "token.update"
    assert compare("--revoke", "--reason", "again")[-1] == "No token would be accepted that the store refuses."


def test_a_later_end_that_is_not_published_yet_revokes_nothing(store):
    """The database is right about it, as it is not older than the store."""
    token = TokenFactory(name="prolonged", expires_at=timezone.now() - timedelta(minutes=1))
    publisher.publish_all()
    store.freeze()
    with change(actor=Actor("ann", "command")) as tx:
        Token.objects.update(expires_at=timezone.now() + timedelta(hours=1))
        tx.updated(Token.objects.get(), before={})
    store.thaw()

    said = compare("--revoke", "--reason", "restored")

    assert said[1:] == [
        f"The token prolonged ({token.pk}) is not published yet.",
        "No token would be accepted that the store refuses.",
    ]


@pytest.fixture
def suspended(store) -> dict[str, Token | Project]:
    """A token, a project with and one without an end, and values were suspended after the backup that SQL is now."""
    subjects = {name: TokenFactory(name=name) for name in ("kept", "token", "over", "short")}
    subjects |= {name: ProjectFactory(name=name) for name in ("endless", "ending")}
    with change(actor=Actor("ann", "command"), reason="before") as tx:
        suspend(tx, subjects["short"], HOUR / 2 + timezone.now())
    backup = Revision.objects.order_by("number").last().number
    at = timezone.now() + HOUR
    with change(actor=Actor("ann", "command"), reason="loops") as tx:
        for name, end in (("token", at), ("over", None), ("endless", None), ("ending", at)):
            suspend(tx, subjects[name], end)
        set_end(tx, Suspension.objects.get(token=subjects["short"]), at)
        suspend_value(tx, "ip", "10.0.0.1", ends_at=at)
        suspend_value(tx, "session", "9f2c", subjects["ending"])
    with change(actor=Actor("ann", "command"), reason="over") as tx:
        resume(tx, Suspension.objects.get(token=subjects["over"]))
    Suspension.objects.exclude(token=subjects["short"]).delete()
    Suspension.objects.update(ends_at=at - HOUR / 2)
    Revision.objects.filter(number__gt=backup).delete()
    return subjects


def test_what_was_suspended_is_suspended_again_before_anything_is_published(suspended, document, token_document):
    """With the same ends, so that enforcers get the documents that they have."""
    tokens = [token_document(suspended[name].digest) for name in ("kept", "token", "over", "short")]
    emergency = document("emergency")

    said = compare()
    done = compare("--suspend", "--reason", "restored")

    assert said[-1].startswith("If the database is published, 6 suspensions are lifted.")
    assert sorted(line for line in said if "suspended" in line) == sorted(
        [
            *(f"The token {name} ({suspended[name].pk}) was suspended." for name in ("token", "short")),
            *(
                f"The project {name} ({suspended[name].pk}) is suspended in the store."
                for name in ("endless", "ending")
            ),
            "The value ip = 10.0.0.1 in all projects is suspended in the store.",
            "The value session = 9f2c in ending is suspended in the store.",
        ]
    )
    assert done[-1] == "Suspended 6 tokens, projects and values again."
    assert compare()[-1] == "No token would be accepted that the store refuses."
    publisher.publish_all()
    assert [token_document(suspended[name].digest) for name in ("kept", "token", "over", "short")] == tokens
    assert document("emergency") == emergency
    assert set(Suspension.objects.values_list("reason", flat=True)) == {"before", "restored"}


def test_what_was_resumed_and_is_not_published_yet_is_not_suspended_again(store, suspended):
    """The database is right about it, as it is not older than the store."""
    compare("--suspend", "--reason", "restored")
    publisher.publish_all()
    store.freeze()
    with change(actor=Actor("ann", "command"), reason="well") as tx:
        for row in Suspension.objects.all():
            resume(tx, row)
    store.thaw()

    said = compare("--suspend", "--reason", "restored")

    assert said[-1] == "No token would be accepted that the store refuses."
    assert not Suspension.objects.exists()


def test_an_empty_store_says_nothing(store):
    """It would name every token as deleted."""
    TokenFactory()

    with pytest.raises(CommandError, match="The store is empty"):
        compare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--revoke"], "1 to 500 characters, got 0"),
        (["--reason", "x"], "only used with --revoke"),
        (["--revoke", "--reason", "x" * 501], "got 501"),
        (["--revoke", "--reason", "a\x00b"], "--reason: "),
    ],
)
def test_a_revocation_needs_a_reason(options, message):
    with pytest.raises(CommandError, match=message):
        compare(*options)
