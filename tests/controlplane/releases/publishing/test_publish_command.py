from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from controlplane.core.store import keys
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.management.commands import publish as command
from controlplane.releases.publishing.models import OutboxEntry
from tests.factories import ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def publish(*options: str) -> str:
    output = StringIO()
    call_command("publish", *options, stdout=output)
    return output.getvalue()


def test_pending_changes_are_published(store, document):
    """Without options the command does what Celery does."""
    project = ProjectFactory()
    OutboxEntry.objects.create(kind="project", object_id=project.pk)

    assert publish() == "Published revision 1.\n"
    assert document(f"project:{project.pk}")["slug"] == project.slug


def test_nothing_pending_is_no_error(store):
    """It may run at any time."""
    assert publish() == "Nothing was pending.\n"


def test_all_rebuilds_the_store(store, document, token_document):
    """One command fills an empty store from SQL."""
    token = TokenFactory()

    assert publish("--all") == "Published revision 1.\n"
    assert token_document(token.digest)["id"] == token.pk
    assert document(f"project:{token.project_id}")["id"] == token.project_id


def test_all_removes_tokens_that_sql_does_not_know(store, client_of_store, token_document):
    """A back-up of the store brings back a token of a deleted project: it must not work."""
    token = TokenFactory()
    publish("--all")
    token.project.delete()

    assert publish("--all") == "Deleting 1 tokens that are not in SQL.\nPublished revision 2.\n"
    assert token_document(token.digest) is None


def test_another_publisher_at_work_is_an_error(store, client_of_store, monkeypatch):
    """The command did nothing itself, and must not say that nothing was pending."""
    monkeypatch.setattr(command, "PATIENCE_SECONDS", 0.0)
    client_of_store.set(keys().lock(publisher.LOCK), "another", px=5_000)

    with pytest.raises(CommandError, match="Another publisher is at work"):
        publish("--all")
    assert OutboxEntry.objects.filter(revision=None).exists()


def test_another_publisher_that_ends_soon_is_waited_for(store, client_of_store):
    """A command that is typed while the worker publishes a change has no reason to fail."""
    client_of_store.set(keys().lock(publisher.LOCK), "another", px=400)

    assert publish("--all") == "Published revision 1.\n"


def test_a_store_that_is_away_is_an_error(store):
    """The command fails, and what it should have done stays pending."""
    store.kill()

    with pytest.raises(CommandError, match="the changes stay pending"):
        publish()


@pytest.mark.parametrize("options", [("--all",), ("--all", "--new-epoch", "--reason", "restored")])
def test_a_worker_may_publish_first(store, monkeypatch, options):
    """What the command has asked for is published all the same, and it says so."""
    publish_pending = publisher.publish_pending

    def after_the_worker(**_):
        publish_pending()
        return publish_pending()

    monkeypatch.setattr(publisher, "publish_pending", after_the_worker)
    assert publish(*options) == "Published revision 1.\n"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("screen", "drawn"), [(Terminal, True), (StringIO, False)])
def test_a_terminal_shows_how_far_a_rebuild_is(store, screen, drawn):
    """In a file there is no bar, and the line on a terminal is cleared at the end."""
    TokenFactory()
    errors = screen()

    call_command("publish", "--all", stdout=StringIO(), stderr=errors)

    assert ("100%  1 of 1 tokens" in errors.getvalue()) is drawn
    assert errors.getvalue().endswith("\r\x1b[K") is drawn
